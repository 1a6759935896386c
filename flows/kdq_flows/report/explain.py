"""`kdq explain`: rebuilds the quantized student of a kept run, and finds where it loses quality."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kdq_core.errors import RecipeError
from kdq_core.plan.plan import asked_of
from kdq_core.plan.view import RunView
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.wiring import wire
from kdq_core.recipe.spec import Rule, Site
from kdq_core.store.records import Artifact
from kdq_core.store.store import Store
from kdq_core.tensors import Split
from kdq_core.work.effects import Explained
from kdq_core.work.explaining import explain
from kdq_core.work.work import StageWork
from kdq_flows.facts.report import yaml_of
from kdq_flows.report import kept

BATCH = 64


def explained(
    site: Site, record: kept.RunRecord, *, samples: int, split: Split, tell: Callable[[str], None]
) -> Explained:
    """Explain a run, and keep the result beside its record.

    Args:
        site: where the run is kept.
        record: the run.
        samples: the most samples to look at.
        split: where they are from. Rules that are chosen on the test split would make its figures look too good.
        tell: hears what happens.

    Raises:
        RecipeError: the run made no int8 file, the store lost its results, or the split is empty.
    """
    from kdq_core.training.backend import plain_torch

    view, catalog = record.view(Store(site.store)), Catalog.load()
    with tempfile.TemporaryDirectory(prefix="kdq-explain-") as folder:
        work = _work(record, view, site, catalog, Path(folder))
        plain_torch(site.threads)
        batches, found = [], 0
        for batch in work.workload.batches(split, batch_size=BATCH):
            batches.append(batch)
            found += len(batch.ids)
            if found >= samples:
                break
        if not batches:
            raise RecipeError(
                f"the split {split!r} is empty, so there is nothing to explain with; name another --split"
            )
        tell(f"{found} samples of {split!r}; each layer runs alone and left out")
        result = explain(work.quantized(), batches)
    place = kept.folder(site, record.result.run)
    place.mkdir(parents=True, exist_ok=True)
    kept.write(place / kept.EXPLAINED, result.model_dump_json())
    return result


def predicted_bytes(view: RunView, rules: tuple[Rule, ...]) -> int | None:
    """Bytes of the int8 file, if the weights of skipped layers were float, and others had the rules' bits."""
    artifact, size = view.record("artifact", Artifact), view.file("int8")
    if artifact is None or size is None:
        return None
    more = 0.0
    for rule in rules:
        for one in artifact.operators:
            if rule.match in (one.path, one.operator) and one.weight_bytes and one.weight_bits:
                more += one.weight_bytes * (
                    (32 if rule.skip else rule.weights or one.weight_bits) / one.weight_bits - 1
                )
    return round(size.stat().st_size + more)


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


def _work(record: kept.RunRecord, view: RunView, site: Site, catalog: Catalog, folder: Path) -> StageWork:
    """The stage `evaluate` of the run, which rebuilds the quantized student."""
    node = record.plan.giving("report")
    if node is None or "quantized" not in node.parents:
        raise RecipeError(f"run {record.result.run!r} measured no int8 file, so there is nothing to explain")
    gone = [name for name in node.parents.values() if name not in view.entries]
    if gone:
        raise RecipeError(
            f"the store no longer has the results of {', '.join(gone)} of run {record.result.run!r}; run its recipe "
            "again"
        )
    asked = asked_of(record.plan.recipe, site, catalog)
    wired = next(one for one in wire(asked, catalog) if one.title == node.name)
    parents = {port: view.entries[name] for port, name in node.parents.items()}
    return StageWork(wired=wired, _asked=asked, parents=parents, draft=folder, scratch=folder, emit=lambda _event: None)
