"""Locks of real runs, and replays of them, in this process with real workers."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdq_core.errors import RecipeError
from kdq_core.plan.lock import Lock, locked, read_lock
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import ChosenForm
from kdq_flows.cli import app
from kdq_flows.replay import _choose, find_lock, replay
from kdq_flows.run.pipeline import Pipeline

RECIPE = """
name: tiny
workload: {use: digits, options: {teacher_width: 4}}
stages: [train_teacher]
teacher: {fit: {epochs: 1}}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Lock]:
    """A site, and the lock of its run."""
    site = Site(home=tmp_path_factory.mktemp("ran") / "home", threads=1)
    recipe = Recipe.model_validate({
        "name": "tiny", "workload": {"use": "digits", "options": {"teacher_width": 4}}, "stages": ["train_teacher"],
        "teacher": {"fit": {"epochs": 1}},
    })  # fmt: skip
    pipeline = Pipeline(recipe, site, name="tiny-1", tracked=False)
    pipeline.run_inline()
    pipeline.finish()
    assert pipeline.error is None
    return site, find_lock(site, "tiny-1")


def other_bytes(lock: Lock) -> Lock:
    """The lock of a run that gave other weights."""
    teacher = lock.stages[0]
    files = dict.fromkeys(teacher.files, "0" * 64)
    return lock.model_copy(update={"stages": (teacher.model_copy(update={"files": files}),)})


@pytest.mark.rare
def test_a_run_is_reproduced_from_its_lock_in_an_empty_store(ran: tuple[Site, Lock], tmp_path: Path) -> None:
    site, lock = ran
    result = replay(lock, site, home=tmp_path / "again")
    assert (result.ran, result.reproduced, result.files) == (True, True, len(lock.stages[0].files))
    assert sorted(path.name for path in (tmp_path / "again").iterdir() if path.name == "mlflow") == []
    again = replay(other_bytes(lock), site)
    assert (again.ran, again.reproduced) == (True, False)
    assert [(one.kind, one.locked) for one in again.bytes] == [("bytes", "0" * 12)]
    assert not list(site.home.glob("replay-*"))


def test_a_change_of_what_decides_results_is_told_instead(ran: tuple[Site, Lock]) -> None:
    site, lock = ran
    teacher = lock.stages[0]
    changed = teacher.model_copy(update={"parts": teacher.parts | {"libraries": {"torch": "1.0"}}})
    result = replay(lock.model_copy(update={"stages": (changed,)}), site)
    assert (result.ran, result.reproduced) == (False, False)
    assert ("package", "torch", "1.0") in [(one.kind, one.what, one.locked) for one in result.differences]


def test_the_command_writes_a_lock_and_tells_what_changed(
    ran: tuple[Site, Lock], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, lock = ran
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE)
    monkeypatch.setenv("KDQ_HOME", str(site.home))
    monkeypatch.setenv("KDQ_THREADS", "1")
    done = CliRunner().invoke(app, ["lock", str(file)])
    assert done.exit_code == 0, done.output
    assert read_lock(tmp_path / "tiny.lock.json").stages == lock.stages
    assert "1 stages, " in done.output
    monkeypatch.setenv("KDQ_THREADS", "2")
    done = CliRunner().invoke(app, ["lock", str(file), "--output", str(tmp_path / "two.lock.json")])
    assert "has not run, so `kdq replay` has nothing to compare with" in done.output
    with pytest.raises(RecipeError, match=r"^the lock holds no results to compare with"):
        replay(read_lock(tmp_path / "two.lock.json"), site)
    changed = lock.stages[0].model_copy(update={"parts": lock.stages[0].parts | {"seed": 7}})
    old = tmp_path / "old.lock.json"
    old.write_text(lock.model_copy(update={"stages": (changed,)}).model_dump_json())
    done = CliRunner().invoke(app, ["replay", str(old)])
    assert done.exit_code == 1
    assert "Changed since the lock" in done.output
    assert "was not replayed: its results would not be comparable; --anyway computes them" in done.output


def test_a_run_that_nobody_knows_names_those_with_a_lock(ran: tuple[Site, Lock], tmp_path: Path) -> None:
    site, lock = ran
    with pytest.raises(RecipeError) as caught:
        find_lock(site, "tiny-2")
    assert str(caught.value) == (
        "no run named 'tiny-2' has a lock; did you mean 'tiny-1'? Runs: tiny-1; name one of these, a version as "
        "NAME/NUMBER or NAME@ALIAS, or a file that `kdq lock` wrote"
    )
    (tmp_path / "there").write_text("x")
    with pytest.raises(RecipeError) as caught:
        replay(lock, site, home=tmp_path)
    assert str(caught.value) == (
        f"the folder {str(tmp_path)!r} is not empty, and a replay begins with an empty store; name another one"
    )


def test_a_replay_takes_what_its_run_chose_by_measuring(ran: tuple[Site, Lock], tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "tiny", "workload": "digits"})
    pipeline = Pipeline(recipe, Site(home=tmp_path / "home", threads=1), tracked=False)
    chosen = ChosenForm(form="all layers in float", options={"weight_only": ["head:linear"]}, batch_size=1)
    (stage,) = ran[1].stages
    place = stage.model_copy(update={"name": "place", "use": "place", "parents": {}, "chosen": chosen})
    _choose(ran[1].model_copy(update={"stages": (stage, place)}), pipeline)
    entry = pipeline.store.lookup(pipeline.plan.node("place").key({}))
    assert entry is not None
    assert entry.record == chosen
    assert locked(pipeline.plan, {"place": entry}).stages[3].chosen == chosen
    pipeline.finish()
