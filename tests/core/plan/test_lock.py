from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import RecipeError
from kdq_core.plan.lock import Lock, differences, lock_of, locked, read_lock, unlike
from kdq_core.plan.plan import Plan, make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import Checkpoint, EvaluationReport, StoredPredictions
from kdq_core.store.store import Entry, Store


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    recipe = Recipe(name="digits", workload="digits")
    return make_plan(recipe, Site(home=tmp_path_factory.mktemp("home"), threads=3), Catalog.load())


@pytest.fixture
def entries(plan: Plan, tmp_path: Path) -> dict[str, Entry]:
    """The teacher's entry, and a report with predictions and another file."""
    store = Store(tmp_path)
    predictions = StoredPredictions(model="int8", split="test", output="y", path="p.bin", dtype="<f4", shape=(1,))
    records = {
        "train_teacher": Checkpoint(slot="teacher", weights="weights", parameters=1),
        "evaluate": EvaluationReport(models={}, predictions=(predictions,)),
    }
    made = {}
    for name, record in records.items():
        key = name.encode().hex().ljust(64, "0")
        with store.draft(key) as draft:
            for file in ("weights", "p.bin", "times.json"):
                (draft / file).write_text(f"{file} of {name}")
            made[name] = store.commit(draft, stage=name, key=key, parts={}, record=record)
    return made


def changed(lock: Lock, stage: str, **parts: Any) -> Lock:
    """The lock with other parts in one stage."""
    stages = tuple(
        one.model_copy(update={"parts": {**one.parts, **parts}}) if one.name == stage else one for one in lock.stages
    )
    return lock.model_copy(update={"stages": stages})


def test_a_lock_holds_recipe_site_packages_and_the_parts_of_each_key(plan: Plan) -> None:
    lock = locked(plan, {})
    assert lock.recipe == plan.recipe
    assert (lock.device, lock.precision, lock.threads) == ("cpu", "fp32", 3)
    assert lock.packages["torch"] == version("torch")
    assert [stage.name for stage in lock.stages] == [node.name for node in plan.nodes]
    teacher = lock.stages[0]
    assert {"code", "libraries", "recipe", "data", "seed", "device"} <= teacher.parts.keys()
    assert teacher.parts == plan.nodes[0].parts
    assert not lock.ran
    assert lock_of(lock.model_dump_json().encode(), "it") == lock


def test_an_unchanged_plan_does_not_differ_from_its_lock(plan: Plan) -> None:
    assert differences(locked(plan, {}), plan) == ()


def test_what_decides_results_and_changed_is_named_with_its_stages(plan: Plan) -> None:
    lock = locked(plan, {})
    libraries = lock.stages[0].parts["libraries"]
    assert isinstance(libraries, dict)
    lock = changed(lock, "train_teacher", libraries={**libraries, "torch": "1.0"}, data="sha256:old", seed=7)
    lock = changed(lock, "distill", device={"kind": "cpu", "isa": "avx2"}, data="sha256:old")
    found = {(one.kind, one.what): one for one in differences(lock, plan)}
    torch = found["package", "torch"]
    assert (torch.locked, torch.now, torch.stages) == ("1.0", version("torch"), ("train_teacher",))
    assert found["data", "data"].stages == ("train_teacher", "distill")
    assert (found["recipe", "seed"].locked, found["recipe", "seed"].now) == ("7", "0")
    assert found["machine", "threads"].locked == "none"


def test_a_stage_that_is_gone_or_new_is_a_difference_and_the_registry_is_none(plan: Plan) -> None:
    lock = locked(plan, {})
    other = lock.model_copy(update={"stages": tuple(one for one in lock.stages if one.name != "evaluate")})
    assert [(one.kind, one.what, one.locked, one.now) for one in differences(other, plan)] == [
        ("stage", "evaluate", "missing", "there")
    ]
    assert differences(changed(lock, "register", others={"tracking": "elsewhere"}), plan) == ()


def test_files_with_other_bytes_are_named_and_times_do_not_count(plan: Plan, entries: dict[str, Entry]) -> None:
    lock = locked(plan, entries)
    files = {stage.name: sorted(stage.files) for stage in lock.stages if stage.files}
    assert files == {"train_teacher": ["p.bin", "times.json", "weights"], "evaluate": ["p.bin"]}
    assert lock.ran
    assert unlike(lock, entries) == ()
    stages = tuple(
        one.model_copy(update={"files": one.files | {"weights": "0" * 64}}) if one.name == "train_teacher" else one
        for one in lock.stages
    )
    found = unlike(lock.model_copy(update={"stages": stages}), {"train_teacher": entries["train_teacher"]})
    now = entries["train_teacher"].sha256("weights")[:12]
    assert [(one.what, one.locked, one.now, one.stages) for one in found] == [
        ("weights", "0" * 12, now, ("train_teacher",)),
        ("p.bin", entries["evaluate"].sha256("p.bin")[:12], "missing", ("evaluate",)),
    ]


def test_a_file_that_is_no_lock_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.lock.json"
    with pytest.raises(RecipeError) as caught:
        read_lock(path)
    assert str(caught.value) == (f"the lock {str(path)!r} cannot be read (No such file or directory); check its path")
    path.write_text('{"format": 2}')
    with pytest.raises(RecipeError) as caught:
        read_lock(path)
    assert str(caught.value) == (
        f"{str(path)!r} is no lock that this version of KDQ reads (format: Input should be 1); `kdq lock FILE` writes "
        "one"
    )
