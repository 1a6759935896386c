"""Real servers that are killed while a run trains, and come back."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from kdq_core.recipe.spec import Site
from kdq_flows.prefect.owed import AWAY
from kdq_registry.environment import client
from kdq_registry.spool import Spool, spools
from tests.flows.test_run import KDQ, RECIPE, STAGES, ask_prefect, environment, facts, until
from tests.flows.test_run import kdq as run_kdq
from tests.registry.backends import free_port, mlflow_server

pytestmark = [pytest.mark.slow, pytest.mark.rare, pytest.mark.timeout(1800)]

EPOCHS = 15


def points(home: Path) -> int:
    """How many points of curves a run has told so far."""
    return sum(1 for spool in spools(Site(home=home)) for event, _ in spool.events() if event.get("points"))


def curves(site: Site) -> dict[str, tuple[str, float, list[int]]]:
    """State, seconds and steps of the training loss of every run, by name."""
    mlflow, found = client(site), {}
    for run in mlflow.search_runs([mlflow.get_experiment_by_name("tiny").experiment_id]):
        steps = [point.step for point in mlflow.get_metric_history(run.info.run_id, "train/loss")]
        found[run.info.run_name] = (run.info.status, (run.info.end_time - run.info.start_time) / 1000, steps)
    return found


def begun(home: Path, tracking: str, recipe: Path, *words: str) -> subprocess.Popen[str]:
    variables = environment(home) | {"KDQ_TRACKING_URI": tracking, "KDQ_TRACKING_WAIT_SECONDS": "5"}
    command: list[Any] = [KDQ, "run", recipe, "--json", *words]
    return subprocess.Popen(
        command, env=variables, cwd=home.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(run: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = run.communicate(timeout=1500)
    return subprocess.CompletedProcess(run.args, run.returncode, out, err)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(RECIPE.replace("{epochs: 3}", f"{{epochs: {EPOCHS}}}"))
    return file


@pytest.mark.parametrize(("seconds", "epochs"), [(4.0, EPOCHS), (60.0, 120)])
def test_an_mlflow_that_dies_while_a_run_trains_stops_nothing_and_has_each_epoch_once(
    tmp_path: Path, recipe: Path, seconds: float, epochs: int
) -> None:
    recipe.write_text(recipe.read_text().replace(f"epochs: {EPOCHS}", f"epochs: {epochs}"))
    home, served, port = tmp_path / "home", Site(home=tmp_path / "served"), free_port()
    served.home.mkdir()
    with mlflow_server(served, port=port) as tracking:
        run = begun(home, tracking, recipe, "--no-server")
        until(lambda: points(home) > 4, "epochs of the quantized student", 400)
    before = points(home)
    time.sleep(seconds)
    assert run.poll() is None
    assert before + 2 < points(home)
    assert seconds < 60 or points(home) < epochs  # it still trains
    with mlflow_server(served, port=port):
        done = ended(run)
        assert done.returncode == 0, done.stderr
        result = facts(done)
        assert result["version"] == {"name": "tiny", "version": 1}
        found = curves(Site(home=home, tracking_uri=tracking))
    assert "the run continues; its events for MLflow wait in " in done.stderr
    assert "MLflow answers again; its events are uploaded, " in done.stderr
    assert {name: steps for name, (_, _, steps) in found.items() if steps} == {
        "train_teacher": [1], "distill": [1], "quantize": list(range(1, epochs + 1))
    }  # fmt: skip
    assert {status for status, _, _ in found.values()} == {"FINISHED"}
    took = {stage["name"]: stage["seconds"] for stage in result["stages"]}
    assert {name: found[name][1] for name in took} == pytest.approx(took, abs=1)
    assert spools(Site(home=home)) == []


def test_a_run_that_cannot_register_keeps_all_and_the_next_command_uploads_it(tmp_path: Path, recipe: Path) -> None:
    home, served, port = tmp_path / "home", Site(home=tmp_path / "served"), free_port()
    served.home.mkdir()
    with mlflow_server(served, port=port) as tracking:
        run = begun(home, tracking, recipe, "--no-server")
        until(lambda: points(home) > 4, "epochs of the quantized student", 400)
    done = ended(run)
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(
        f"error: the model is not registered: the tracking server at {tracking!r} does not answer ("
    )
    assert error.endswith("Run the same command again: it registers the model and trains nothing")
    (spool,) = spools(Site(home=home))
    assert (type(spool), spool.ended) == (Spool, True)
    with mlflow_server(served, port=port):
        variables = environment(home) | {"KDQ_TRACKING_URI": tracking}
        again = subprocess.run(
            [KDQ, "run", recipe, "--json", "--no-server"], env=variables, cwd=tmp_path, capture_output=True, text=True
        )
        assert again.returncode == 0, again.stderr
        assert {stage["name"] for stage in facts(again)["stages"] if stage["state"] == "ran"} == {"register"}
        found = curves(Site(home=home, tracking_uri=tracking))
    assert "that had waited are in MLflow now" in again.stderr
    assert found["quantize"][2] == list(range(1, EPOCHS + 1))
    assert spools(Site(home=home)) == []


def test_a_prefect_that_dies_while_a_run_trains_says_completed_when_it_is_back(tmp_path: Path, recipe: Path) -> None:
    home = tmp_path / "home"
    try:
        run = begun(home, "", recipe)
        until(lambda: points(home) > 4, "epochs of the quantized student", 400)
        os.killpg(json.loads((home / "servers" / "prefect.json").read_text())["pid"], signal.SIGKILL)
        done = ended(run)
        assert done.returncode == 0, done.stderr
        assert AWAY in " ".join(done.stderr.split())
        result = facts(done)
        assert {stage["state"] for stage in result["stages"]} == {"ran"}
        up = run_kdq(home, "up")
        assert "is Completed in Prefect too, which was away when the run ended" in up.stderr
        (found,) = ask_prefect(home, "flow_runs", {})
        assert (found["name"], found["state_name"]) == (result["run"], "Completed")
        assert found["state"]["message"].startswith("completed: tiny version 1; ")
        tasks = ask_prefect(home, "task_runs", {})
        assert {task["state_name"] for task in tasks} == {"Completed"}
        assert len(tasks) == len(STAGES)
    finally:
        run_kdq(home, "down")
