"""Run stages of a recipe in this process; a tiny workload to run them with."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdq_core.plan.plan import asked_of, make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Kind, Plugin, Workload
from kdq_core.plugins.loading import CatalogEntry
from kdq_core.plugins.stage import Stage
from kdq_core.plugins.wiring import wire
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.store import Entry, Store
from kdq_core.tensors import Batch, Outputs
from kdq_core.work.run import StageRequest, run_stage
from kdq_core.work.work import StageWork

CATALOG = Catalog.load()


class Run:
    """The stages of one recipe; entries by stage name, and the events they sent.

    The first stage checks those after it. The check of the export takes seconds and is made only if `trial` is true.
    So does the measuring of forms: without a target in the recipe, all is int8.
    """

    def __init__(
        self, home: Path, catalog: Catalog = CATALOG, *, trial: bool = False, precision: Any = "auto", **recipe: Any
    ) -> None:
        self.site, self.catalog = Site(home=home, threads=1, precision=precision), catalog
        recipe.setdefault("target", {"use": "onnxruntime-cpu", "options": {"placement": "smallest"}})
        self.plan = make_plan(Recipe.model_validate({"name": "tiny", **recipe}), self.site, catalog)
        self.recipe = self.plan.recipe
        self.entries: dict[str, Entry] = {}
        self.events: list[dict[str, Any]] = []
        self.checked, self.trial = False, trial

    def work(self, name: str, draft: Path) -> StageWork:
        """What the stage is given."""
        node, scratch = self.plan.node(name), self.site.home / "scratch" / name
        scratch.mkdir(parents=True, exist_ok=True)
        asked = asked_of(self.recipe, self.site, self.catalog)
        return StageWork(
            wired=next(one for one in wire(asked, self.catalog) if one.title == name),
            _asked=asked,
            parents={port: self.entries[title] for port, title in node.parents.items()},
            draft=draft,
            scratch=scratch,
            emit=self.events.append,
        )

    def _checks(self, node: Any) -> bool:
        return node.name not in self.entries and (self.trial or node.use != "export")

    def stage(self, name: str) -> Entry:
        """Run one stage, whose parents ran, and commit its entry; the first one checks those that are not done."""
        node = self.plan.node(name)
        digests = {title: entry.digest for title, entry in self.entries.items() if entry is not None}
        ahead = [] if self.checked else [one.name for one in self.plan.nodes if self._checks(one)]
        request = StageRequest(
            title=name,
            key=node.key(digests),
            parts=node.full_parts(digests),
            parents={port: self.entries[title].manifest.key for port, title in node.parents.items()},
            recipe=self.recipe,
            site=self.site,
            checks=tuple(ahead),
            lineage=digests,
        )
        mode = torch.get_deterministic_debug_mode()
        try:
            kept = Store(self.site.store).lookup(request.key)
            self.entries[name] = kept or run_stage(request, self.events.append, self.catalog)
        finally:
            torch.set_deterministic_debug_mode(mode)  # a stage has a process of its own elsewhere
        self.checked = True
        return self.entries[name]


@pytest.fixture(scope="session")
def stages_of() -> type[Run]:
    """Makes a `Run` from a home and the sections of a recipe."""
    return Run


class Tiny(Workload):
    """Images of 8x8 random numbers in three classes, by which quarter of the image is brightest; a fit takes a blink.

    Attributes:
        classes: of the labels and of the student.
        teacher_classes: of the teacher.
        labels: how many batches of the training split have them; of the test split all or none.
        numbers: instead of classes the student learns one number, the mean of the image.
    """

    classes: int = 3
    teacher_classes: int = 3
    labels: Literal["all", "every second batch", "none"] = "all"
    numbers: bool = False

    def fingerprint(self) -> str:
        return "0" * 64

    def teacher(self) -> nn.Module:
        return net(8, 1 if self.numbers else self.teacher_classes)

    def student(self) -> nn.Module:
        return net(4, 1 if self.numbers else self.classes)

    def batches(self, split: Any, *, batch_size: int, seed: int = 0, epoch: int = 0, view: Any = None) -> Any:
        count = {"train": 96, "validation": 32, "test": 64}[split]
        x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))
        means = F.avg_pool2d(x, 4).flatten(1)[:, :3]
        targets = x.mean((1, 2, 3))[:, None] if self.numbers else means.argmax(1)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
        for index, at in enumerate((order if split == "train" else torch.arange(count)).split(batch_size)):
            bare = self.labels == "none" or (split == "train" and self.labels != "all" and index % 2 == 0)
            yield Batch((x[at],), None if bare else targets[at], at)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        assert batch.targets is not None
        loss = F.mse_loss if self.numbers else F.cross_entropy
        return loss(outputs.logits, batch.targets)


def net(width: int, classes: int) -> nn.Module:
    """A conv, batch norm, relu, dropout and a linear layer."""
    layers = {
        "conv": nn.Conv2d(1, width, 4, 4), "bn": nn.BatchNorm2d(width), "relu": nn.ReLU(), "flat": nn.Flatten(),
        "drop": nn.Dropout(0.2), "head": nn.Linear(4 * width, classes),
    }  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


@pytest.fixture(scope="session")
def installed() -> Any:
    """Makes the catalog with one workload in place of `digits`; its options are those of the recipe."""

    def with_workload(workload: type[Workload]) -> Catalog:
        class Installed(Catalog):
            def build(self, kind: Kind, name: str, options: Any = None, **where: Any) -> Plugin:
                return workload(**options) if kind == "workload" else super().build(kind, name, options, **where)

        return Installed(CATALOG.plugins, CATALOG.quarantined)

    return with_workload


def bringing(base: Catalog, **stages: type[Stage]) -> Catalog:
    """A catalog with further stages, as a guest distribution `kdq-toys` 1.0 would bring them."""

    class Bringing(type(base)):  # type: ignore[misc]
        def load_class(self, entry: CatalogEntry) -> Any:
            return stages[entry.name] if entry.distribution == "kdq-toys" else super().load_class(entry)

        def code_of(self, entry: CatalogEntry, **how: Any) -> Any:
            toy = entry.distribution == "kdq-toys"
            return super().code_of(self.find("stage", "export") if toy else entry, **how)

    catalog: Catalog = Bringing(base.plugins, base.quarantined)
    about = {"distribution": "kdq-toys", "version": "1.0", "house": False}
    catalog.entries += tuple(
        CatalogEntry(kind="stage", name=name, target=f"{one.__module__}:{one.__name__}", **about)
        for name, one in stages.items()
    )
    return catalog


@pytest.fixture(scope="session")
def with_stages() -> Any:
    """Makes a catalog from another one and stages by name."""
    return bringing


@pytest.fixture(scope="session")
def tiny(installed: Any) -> Catalog:
    """The catalog with the tiny workload in place of `digits`."""
    return installed(Tiny)
