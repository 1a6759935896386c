"""`kdq explain`: rebuilds the quantized student of a kept run, and finds where it loses quality."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from kdq_core.errors import KdqError, RecipeError
from kdq_core.plan.plan import asked_of
from kdq_core.plan.view import RunView
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.wiring import wire
from kdq_core.recipe.spec import Rule, Site
from kdq_core.store import open_store
from kdq_core.tensors import Batch, Split
from kdq_core.work.effects import Explained
from kdq_core.work.explaining import explain
from kdq_core.work.work import StageWork
from kdq_flows.facts.report import yaml_of
from kdq_flows.report import kept
from kdq_flows.report.tested import Tested

BATCH = 64
Alone = Callable[[], AbstractContextManager[object]]
KEPT = ("student", "placement")
"""What the stage that quantizes reads to make the student's graph anew."""


def explained(
    site: Site,
    record: kept.RunRecord,
    *,
    samples: int,
    split: Split,
    tell: Callable[[str], None],
    slices: Sequence[str] = (),
    alone: Alone = nullcontext,
) -> Explained:
    """Explain a run, and keep the result beside its record.

    Layers are looked at, and rules are chosen, on some samples of `split`. The files are compared by class and by
    slice, and the file with the rules is measured, on the whole test split.

    Args:
        site: where the run is kept.
        record: the run.
        samples: the most samples to look at.
        split: where they are from. Rules that are chosen on the test split would make its figures look too good.
        tell: hears what happens.
        slices: columns of the data to look at; none: all that the workload names.
        alone: keeps the home's machine free while times are measured.

    Raises:
        RecipeError: the run made no int8 file, the store lost its results, the split is empty, or the data have no such
            column.
    """
    from kdq_core.training.backend import plain_torch

    view, catalog = record.view(open_store(site)), Catalog.load()
    with tempfile.TemporaryDirectory(prefix="kdq-explain-") as folder:
        work = _work(record, view, site, catalog, Path(folder), "report")
        plain_torch(site.threads)
        test = Tested.of(work, view, slices)
        batches = _some(work, split, samples)
        tell(f"{sum(len(b.ids) for b in batches)} samples of {split!r}; each layer runs alone and left out")
        model = work.quantized()
        result = explain(model, batches, test.places())
        result = result.model_copy(update={"flips": test.flips(model, batches), "files": test.compared()})
        if result.rules:
            tell("the file with the proposed rules is made, and runs over the test split")
            try:
                quantizing = _work(record, view, site, catalog, Path(folder), "quantized")
                done: dict[str, Any] = {"patched": test.patched(quantizing, model, result, Path(folder), alone)}
            except KdqError as error:
                done = {"note": f"the file with these rules cannot be made: {error}"}
            result = result.model_copy(update=done)
    place = kept.folder(site, record.result.run)
    place.mkdir(parents=True, exist_ok=True)
    kept.write(place / kept.EXPLAINED, result.model_dump_json())
    return result


def _some(work: StageWork, split: Split, samples: int) -> list[Batch]:
    """The first batches of a split, until there are enough samples."""
    batches: list[Batch] = []
    for batch in work.workload.batches(split, batch_size=BATCH):
        batches.append(batch)
        if sum(len(one.ids) for one in batches) >= samples:
            break
    if not batches:
        raise RecipeError(f"the split {split!r} is empty, so there is nothing to explain with; name another --split")
    return batches


def with_rules(recipe: str, rules: tuple[Rule, ...]) -> str:
    """The recipe as YAML, with further rules at the end of `quantize.rules`."""
    document: dict[str, Any] = yaml.safe_load(recipe)
    section = document.get("quantize") or {}
    section = {"use": section} if isinstance(section, str) else dict(section)
    section["rules"] = [*section.get("rules", ()), *rules_of(rules)]
    return yaml_of({**document, "quantize": section})


def rules_of(rules: tuple[Rule, ...]) -> list[Mapping[str, Any]]:
    """The rules as a recipe writes them."""
    return [rule.model_dump(mode="json", exclude_none=True) for rule in rules]


def _work(record: kept.RunRecord, view: RunView, site: Site, catalog: Catalog, folder: Path, slot: str) -> StageWork:
    """The stage of the run that gives `report`, which rebuilds the quantized student, or `quantized`."""
    measuring, node = record.plan.giving("report"), record.plan.giving(slot)
    if node is None or measuring is None or "quantized" not in measuring.parents:
        raise RecipeError(f"run {record.result.run!r} measured no int8 file, so there is nothing to explain")
    needed = {port: name for port, name in node.parents.items() if slot == "report" or port in KEPT}
    gone = [name for name in needed.values() if name not in view.entries]
    if gone:
        raise RecipeError(
            f"the store no longer has the results of {', '.join(gone)} of run {record.result.run!r}; run its recipe "
            "again"
        )
    asked = asked_of(record.plan.recipe, site, catalog)
    wired = next(one for one in wire(asked, catalog) if one.title == node.name)
    parents = {port: view.entries[name] for port, name in needed.items()}
    return StageWork(wired=wired, _asked=asked, parents=parents, draft=folder, scratch=folder, emit=lambda _event: None)
