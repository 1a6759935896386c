"""A stage of a guest's package, from the recipe to the registered file: nothing in KDQ knows of it."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from kdq_core.recipe.spec import Site
from kdq_core.store.store import Store
from tests.flows.test_run import ask_prefect, begun, facts, kdq, states, until, workers

pytestmark = [pytest.mark.slow, pytest.mark.rare, pytest.mark.timeout(600)]

STAGES = ["train_teacher", "distill", "prune-channels", "quantize", "export", "evaluate", "register"]
RECIPE = f"""
name: pruned
workload: {{use: digits, options: {{teacher_width: 8, student_width: 16}}}}
stages: [{", ".join(STAGES)}]
teacher: {{fit: {{epochs: 1}}}}
distill: {{fit: {{epochs: 1}}}}
prune-channels: {{share: 0.5, epochs: 8}}
quantize: {{use: static}}
evaluate: [quality, size]
gates: []
"""


@pytest.fixture(scope="module", autouse=True)
def installed(guests: Path) -> Iterator[None]:
    """The guests in the environment of this process's children."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(guests), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def finished(installed: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """Home, recipe file and facts of a run without a server."""
    folder = tmp_path_factory.mktemp("pruned")
    recipe = written(folder, RECIPE)
    done = kdq(folder / "home", "run", str(recipe), "--no-server", "--json")
    assert done.returncode == 0, done.stderr
    return folder / "home", recipe, facts(done)


def written(folder: Path, text: str) -> Path:
    file = folder / "pruned.yaml"
    file.write_text(text)
    return file


def planned(home: Path, recipe: Path) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in json.loads(kdq(home, "plan", str(recipe), "--json").stdout)}


def test_the_stages_after_it_take_the_pruned_student(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    home, _, result = finished
    assert states(result) == dict.fromkeys(STAGES, "ran")
    keys = {stage["name"]: stage["key"] for stage in result["stages"]}
    store = Store(Site(home=home, threads=1).store)
    before, after = (store.get(keys[name]).record.model_dump() for name in ("distill", "prune-channels"))
    assert after["type"] == "pruned-student"
    assert {path: len(kept) for path, kept in after["kept"].items()} == {"blocks.0.conv1": 8, "blocks.1.conv1": 16}
    assert [sorted(epoch["values"]) for epoch in after["history"]] == [
        ["train/loss", "validation/loss", "validation/top1"]
    ] * 8
    assert after["parameters"] < 0.6 * before["parameters"]
    assert result["models"]["student"]["parameters"] == result["models"]["int8"]["parameters"] < after["parameters"]
    assert [row["model"] for row in result["table"]] == ["teacher", "float student", "int8 student"]


def test_a_second_run_finds_it_in_the_store(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    home, recipe, _ = finished
    result = facts(kdq(home, "run", str(recipe), "--no-server", "--json"))
    assert (result["status"], states(result)) == ("no-news", dict.fromkeys(STAGES, "cached"))


def test_the_plan_shows_it_and_names_the_option_that_changed(
    finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    home, recipe, _ = finished
    assert {name: row["state"] for name, row in planned(home, recipe).items()} == dict.fromkeys(STAGES, "cached")
    plan = planned(home, written(tmp_path, RECIPE.replace("share: 0.5", "share: 0.25")))
    assert [plan[name]["state"] for name in STAGES] == ["cached"] * 2 + ["run"] * 5
    assert plan["prune-channels"]["why"] == "options.share changed"
    assert plan["quantize"]["why"] == "after prune-channels"


def test_mlflow_has_a_run_of_it_with_its_options_and_curves(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    home, _, _ = finished
    with contextlib.closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as database:
        ((run,),) = database.execute("select run_uuid from runs where name = 'prune-channels'").fetchall()
        params = dict(database.execute("select key, value from params where run_uuid = ?", (run,)).fetchall())
    assert (params["options.share"], params["options.epochs"], points(home)) == ("0.5", "8", [8])


def test_its_section_stands_in_the_schema_and_in_its_method_card(tmp_path: Path) -> None:
    schema = json.loads(kdq(tmp_path / "home", "schema").stdout)
    section = schema["properties"]["prune-channels"]
    assert section["properties"]["share"]["description"] == "share of each layer's channels that the stage removes"
    card = json.loads(kdq(tmp_path / "home", "plugins", "show", "prune-channels", "--json").stdout)
    assert [option["option"] for option in card["options"]] == ["share", "epochs", "learning_rate"]
    assert "Limits: prunes a convolution if its output goes to one convolution or linear layer" in card["card"]


@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        (
            "{share: 0.5, epochs: 8}",
            "{shard: 0.5}",
            "pruned.yaml:7: unknown option 'shard' of stage 'prune-channels'; did you mean 'share'? "
            "allowed: epochs, learning_rate, share",
        ),
        (
            "share: 0.5",
            "share: 1",
            "pruned.yaml:7: option 'share' of stage 'prune-channels' is 1; allowed: a number, at least 0 and below 1",
        ),
        (
            "prune-channels: {",
            "prune-chanels: {",
            "pruned.yaml:7: unknown key 'prune-chanels'; did you mean 'prune-channels'?",
        ),
        (
            "distill, prune-channels,",
            "distill,",
            "pruned.yaml:7: section 'prune-channels' holds the options of a stage that 'stages' does not list; list "
            "'prune-channels' there",
        ),
        (
            "distill, prune-channels,",
            "prune-channels,",
            "pruned.yaml:4: stage 'prune-channels' reads the slot 'student', which no stage before it gives; list "
            "'distill', which gives it, before 'prune-channels', or name a trained student: student: {source: "
            "checkpoint, file: ...}",
        ),
    ],
)
def test_a_mistake_in_its_section_is_named_with_its_line(tmp_path: Path, right: str, wrong: str, error: str) -> None:
    written(tmp_path, RECIPE.replace(right, wrong))
    done = kdq(tmp_path / "home", "validate", "pruned.yaml")
    assert (done.returncode, done.stderr) == (2, f"error: {error}\n")


def test_its_options_may_stand_in_the_list_under_a_name_of_their_own(
    finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    home, _, _ = finished
    recipe = yaml.safe_load(RECIPE)
    options = recipe.pop("prune-channels")
    recipe["stages"][2] = {"use": "prune-channels", "name": "half", "options": options, "retry": {"attempts": 1}}
    plan = planned(home, written(tmp_path, yaml.safe_dump(recipe)))
    assert {name: row["state"] for name, row in plan.items()} == dict.fromkeys(
        [*STAGES[:2], "half", *STAGES[3:]], "cached"
    )


@pytest.mark.rare
def test_killed_in_its_fit_it_is_resumed_under_prefect_to_the_same_bytes(
    finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    home, short = tmp_path / "home", STAGES[:4]
    recipe = written(tmp_path, RECIPE.replace(", ".join(STAGES), ", ".join(short)))

    def at_work() -> psutil.Process | None:
        log, kept = list(home.glob("logs/*/prune-channels.log")), list(home.glob("scratch/*/fit.safetensors"))
        alive = workers(home)
        return alive[0] if log and kept and alive else None

    try:
        with begun(home, recipe) as run:
            until(at_work, "a worker in the middle of its fit", 300).kill()
            assert run.wait(200) == 0, (tmp_path / "out").read_text()
        result = json.loads((tmp_path / "out").read_text().splitlines()[-1])
        assert states(result) == dict.fromkeys(short, "ran")
        keys = {stage["name"]: stage["key"] for stage in finished[2]["stages"]}
        for at in keys["prune-channels"], keys["quantize"]:
            anew, undisturbed = (Store(Site(home=one, threads=1).store).get(at) for one in (home, finished[0]))
            assert anew.digest == undisturbed.digest
        killed, resumed = points(home)
        assert (killed > 0, 0 < resumed < 8) == (True, True)
        tasks = ask_prefect(home, "task_runs", {"flow_runs": {"name": {"any_": [result["run"]]}}})
        shown = {task["name"]: (task["state_name"], task["run_count"]) for task in tasks}
        assert shown == dict.fromkeys(short, ("Completed", 1)) | {"prune-channels": ("Completed", 2)}
    finally:
        kdq(home, "down")


def points(home: Path) -> list[int]:
    """How many points the curves of each of its runs in MLflow have, in order."""
    asked = (
        "select count(metrics.key) from runs left join metrics on metrics.run_uuid = runs.run_uuid "
        "and metrics.key = 'validation/top1' where runs.name = 'prune-channels' group by runs.run_uuid "
        "order by runs.start_time"
    )
    with contextlib.closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as database:
        return [count for (count,) in database.execute(asked).fetchall()]
