"""Which models of a version `kdq watch` finds in the store, and what it does with them."""

import shutil
from pathlib import Path

import pytest

from kdq_core.plan.lock import Lock, locked
from kdq_core.plan.plan import make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import Checkpoint, EvaluationReport, Metric
from kdq_core.store.store import Entry, Store
from kdq_flows import measuring
from kdq_flows.observer import Silent
from kdq_flows.run.pipeline import Pipeline


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(home=tmp_path / "home", threads=1)


@pytest.fixture
def lock(site: Site) -> Lock:
    """The lock of a run whose entries are in the store."""
    plan = make_plan(Recipe(name="digits", workload="digits"), site, Catalog.load())
    store, entries = Store(site.store), dict[str, Entry]()
    for node in plan.nodes[:-2]:
        key = node.key({name: entry.digest for name, entry in entries.items()})
        with store.draft(key) as draft:
            (draft / "weights").write_text(node.name)
            record = Checkpoint(slot=node.gives, weights="weights", parameters=1)
            entries[node.name] = store.commit(draft, stage=node.use, key=key, parts={}, record=record)
    return locked(plan, entries)


def test_the_stage_that_measured_runs_again_in_a_store_of_its_own(
    site: Site, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(site.store.rglob("*"))
    entries = measuring._entries(lock, Store(site.store))
    assert sorted(entries) == ["cache_teacher", "distill", "export", "place", "quantize", "train_teacher"]
    metrics = (Metric(name="top1", value=0.9, unit="fraction", direction="higher"),)
    ran: list[tuple[str, Path]] = []

    def compute(pipeline: Pipeline, node: object, key: str, *_: object) -> Entry:
        store = Store(pipeline.plan.site.store)
        assert store.get(entries["export"].manifest.key).digest == entries["export"].digest
        ran.append((node.name, pipeline.plan.site.home))  # type: ignore[attr-defined]
        with store.draft(key) as draft:
            return store.commit(
                draft, stage="evaluate", key=key, parts={}, record=EvaluationReport(models={"int8": metrics})
            )

    monkeypatch.setattr(Pipeline, "_in_worker", compute)
    monkeypatch.setattr(Pipeline, "warm_up", lambda _pipeline: None)
    assert measuring._whole(site, lock, entries, tmp_path / "look", Silent()) == metrics
    assert ran == [("evaluate", tmp_path / "look" / "home")]
    assert sorted(site.store.rglob("*")) == before


def test_without_one_of_its_models_the_file_is_measured_alone(site: Site, lock: Lock) -> None:
    store = Store(site.store)
    quantize = next(stage for stage in lock.stages if stage.name == "quantize")
    shutil.rmtree(store.folder(quantize.key))
    assert measuring._entries(lock, store) == {}
