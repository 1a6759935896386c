"""The kit's bench for stages: it runs the other stages of a recipe for real, and tries the stage at the end."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdq_core.plan.keys import KeyParts
from kdq_core.plan.plan import asked_of, make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.code_version import Code
from kdq_core.plugins.contract import Port, Reads
from kdq_core.plugins.kinds import Plugin
from kdq_core.plugins.loading import CatalogEntry
from kdq_core.plugins.stage import Stage
from kdq_core.plugins.wiring import Wired, wire
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store import open_store
from kdq_core.store.family import Record
from kdq_core.store.hashing import sha256_file
from kdq_core.store.records import Manifest
from kdq_core.store.store import Entry
from kdq_core.training.backend import plain_torch
from kdq_core.work.checking import EVERYTHING, CheckWork, check_works
from kdq_core.work.outcome import outcome
from kdq_core.work.run import StageRequest, run_stage
from kdq_core.work.work import StageWork


@contextlib.contextmanager
def elsewhere() -> Iterator[Path]:
    """Make a new folder for stores and drafts; at the end, restore the settings that stages change in this process.

    Yields:
        The folder.
    """
    threads, mode, temporary = torch.get_num_threads(), torch.get_deterministic_debug_mode(), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="kdq-kit-") as folder, torch.random.fork_rng(devices=[]):
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = temporary
            torch.set_num_threads(threads)
            torch.set_deterministic_debug_mode(mode)


class KilledError(BaseException):
    """Ends a try of a stage in its middle; no `except Exception` of the stage stops it."""


class OneMore(Catalog):
    """The installed plug-ins, and one stage that need not be installed."""

    def __init__(self, stage: type[Stage]) -> None:
        installed = Catalog.load()
        super().__init__(installed.plugins, installed.quarantined)
        target = f"{stage.__module__}:{stage.__qualname__}"
        named = [entry.name for entry in self.of_kind("stage") if entry.target == target]
        self.name = named[0] if named else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", stage.__name__).lower()
        others = tuple(entry for entry in self.entries if (entry.kind, entry.name) != ("stage", self.name))
        self._own = CatalogEntry(
            kind="stage", name=self.name, target=target, distribution="kit", version="0", house=True
        )
        self.entries = (*others, self._own)
        self._stage = stage

    def load_class(self, entry: CatalogEntry) -> type[Plugin]:
        """The class, which need not be importable by its name."""
        return self._stage if entry is self._own else super().load_class(entry)

    def code_of(self, entry: CatalogEntry, **given: Any) -> Code:
        """The code of a plug-in; empty for the stage, because its code does not change during a test."""
        return Code(text="", libraries={}) if entry is self._own else super().code_of(entry, **given)


@dataclass(frozen=True)
class Tried:
    """The result of one try.

    Attributes:
        record: the record that the stage gave.
        draft: the folder that it wrote.
        files: sha256 of each file in the draft, by path.
        events: number of progress events.
        changed: files of the store that the stage changed.
    """

    record: Record
    draft: Path
    files: Mapping[str, str]
    events: int
    changed: tuple[str, ...]


class Bench:
    """One stage at the end of a recipe, with the entries that it reads.

    Attributes:
        title: title of the stage.
        stage: the plug-in.
        asked: the recipe with its plug-ins.
        parents: the entries that it reads, by port.
    """

    def __init__(self, stage: Stage, recipe: Mapping[str, Any], root: Path) -> None:
        """Put `stage` after the stages that `recipe` lists."""
        self.catalog = OneMore(type(stage))
        self._root, self._site = root, Site(home=root / "home", threads=1)
        use = {"use": self.catalog.name, "options": stage.model_dump(mode="json")}
        whole = {"name": "kit", **recipe, "stages": [*recipe.get("stages", ()), use]}
        self.asked = asked_of(Recipe.model_validate(whole), self._site, self.catalog)
        self.title, self.stage = self.catalog.name, stage
        self._all: dict[str, Wired] = {}
        self.parents: dict[str, Entry] = {}
        self._tries = 0

    def wire(self) -> None:
        """Connect the stages of the recipe.

        Raises:
            RecipeError: they do not fit together.
        """
        self._all = {one.title: one for one in wire(self.asked, self.catalog)}

    @property
    def wired(self) -> Wired:
        """The stage, with the stages that it reads from."""
        return self._all[self.title]

    def run_before(self) -> None:
        """Run the stages before it, in this process.

        Raises:
            KdqError: one of them failed.
        """
        plain_torch(self._site.threads)
        plan = make_plan(self.asked.recipe, self._site, self.catalog)
        entries: dict[str, Entry] = {}
        for node in plan.nodes[:-1]:
            digests = {title: entry.digest for title, entry in entries.items()}
            request = StageRequest(
                title=node.name,
                key=node.key(digests),
                parts=node.full_parts(digests),
                parents={port: entries[title].manifest.key for port, title in node.parents.items()},
                recipe=plan.recipe,
                site=self._site,
            )
            kept = open_store(self._site).lookup(request.key)
            entries[node.name] = kept or run_stage(request, lambda _event: None, self.catalog)
        self.parents = {port: entries[title] for port, title in self.wired.parents.items()}

    @property
    def work(self) -> CheckWork:
        """The `Work` for the stage's `check`."""
        scratch = self.folder("scratch")
        return check_works(self._all.values(), self.asked, scratch, lambda _event: None)[self.title]

    def parts(self, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The parts of the stage's key, with other options."""
        stage = self.stage
        other = type(stage).model_validate({**stage.model_dump(), **(options or {})})
        wired = Wired(self.title, self.wired.use, other, self.wired.parents)
        return KeyParts(self.asked, self.catalog).of(wired, self._all)

    def folder(self, kind: str) -> Path:
        """A new folder for one try."""
        self._tries += 1
        made = self._root / "tries" / f"{kind}-{self._tries}"
        (made / "tmp").mkdir(parents=True) if kind == "scratch" else made.mkdir(parents=True)
        return made

    def run(self, scratch: Path, *, kill_at: int | None = None) -> Tried:
        """Try the stage once, in a new draft.

        Args:
            scratch: the scratch folder, which may hold files of an earlier try.
            kill_at: number of the progress event, from 1, at which the try ends.

        Raises:
            KilledError: the try ended at that event.
        """
        draft, before, events = self.folder("draft"), _digests(self._site.store), 0

        def emit(_event: dict[str, Any]) -> None:
            nonlocal events
            events += 1
            if events == kill_at:
                raise KilledError

        work = StageWork(
            wired=self.wired, _asked=self.asked, parents=self.parents, draft=draft, scratch=scratch, emit=emit
        )
        tempfile.tempdir = str(scratch / "tmp")
        torch.seed()  # so that unseeded random numbers differ from try to try
        record = outcome(work, self.catalog)
        after = _digests(self._site.store)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return Tried(record, draft, _digests(draft), events, tuple(changed))

    def rebuilt(self, tried: Tried) -> torch.nn.Module:
        """Build the model as a later stage would get it."""
        given: dict[str, Any] = {"record": tried.record, "files": ()}
        manifest = Manifest.model_construct(**given)
        gives = self.stage.gives
        inputs = {**self.stage.inputs(self.asked), gives: Port(slot=gives)}
        reader = Reader(
            wired=self.wired,
            _asked=self.asked,
            parents={**self.parents, gives: Entry(tried.draft, manifest)},
            draft=tried.draft,
            scratch=tried.draft,
            emit=lambda _event: None,
            inputs=inputs,
        )
        return reader.quantized() if gives == "quantized" else reader.model(gives)


@dataclass(frozen=True)
class Reader(StageWork):
    """The `Work` of a stage that reads everything."""

    inputs: Mapping[str, Port] = field(default_factory=dict)

    @property
    def reads(self) -> Reads:
        """Everything."""
        return EVERYTHING

    @property
    def ports(self) -> Mapping[str, Port]:
        """The inputs of the stage, and the slot that it gives."""
        return self.inputs

    def section(self, name: str) -> Any:
        """A whole section of the recipe."""
        return CheckWork.section(self, name)  # type: ignore[arg-type]

    def may_read(self, name: str, field: str) -> bool:  # noqa: ARG002
        """It may read every field."""
        return True


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
