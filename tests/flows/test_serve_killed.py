"""`kdq serve` finishes what it began: real servers and workers that are killed while a scheduled run trains."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.prefect.due import look, runs_of
from kdq_flows.prefect.schedules import deploy
from kdq_flows.servers.processes import read_record
from tests.flows.test_outages import points
from tests.flows.test_run import KDQ, RECIPE, environment, kdq, until

pytestmark = [pytest.mark.slow, pytest.mark.rare, pytest.mark.timeout(900)]


@contextmanager
def serving(home: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`kdq serve`, and the file with what it says; ended with SIGTERM if it still runs."""
    said = home.parent / f"serve-{time.monotonic_ns()}.txt"
    with said.open("w") as file:
        running = subprocess.Popen([KDQ, "serve"], env=environment(home), cwd=home.parent, stdout=file, stderr=file)
        try:
            yield running, said
        finally:
            running.terminate()
            running.wait(60)


def killed(home: Path, name: str) -> int:
    """Kill a managed process of the home alone; gives its pid."""
    record = read_record(Site(home=home), name)
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    return record.pid


def kill_all(home: Path) -> None:
    """Kill every process of the home: `kdq serve`, server, worker, flow run and stage."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("KDQ_HOME") == str(home):
                process.kill()


def last(home: Path) -> dict[str, Any]:
    done = kdq(home, "schedules", "ls", "--json")
    assert done.returncode == 0, done.stderr
    (schedule,) = json.loads(done.stdout)
    return schedule["last_run"] or {"state": None}


def test_a_scheduled_run_outlives_its_worker_and_its_server_and_is_resumed_when_all_are_killed(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "tiny.yaml"
    file.write_text(RECIPE.replace("{epochs: 3}", "{epochs: 60}"))
    yearly = ("deploy", str(file), "--cron", "0 0 1 1 *")
    try:
        until(lambda: kdq(home, *yearly).returncode == 0, "the server answers and takes the schedule", 400)
        with serving(home) as (_, said):
            until(lambda: " started" in said.read_text(), "the worker", 300)
            assert kdq(home, "schedules", "run", "tiny").returncode == 0
            until(lambda: points(home) > 4, "epochs of the quantized student", 300)
            worker = killed(home, "worker")
            until(lambda: said.read_text().count("worker ") > 2, "another worker", 300)
            before = points(home)
            until(lambda: points(home) > before + 1, "more epochs without the first worker", 300)
            killed(home, "prefect")
            until(lambda: "the Prefect server died; starting it again" in said.read_text(), "a new server", 300)
            until(lambda: last(home)["state"] in ("Completed", "Failed", "Crashed"), "the end of the run", 300)
            assert last(home)["state"] == "Completed", said.read_text()
            assert f"worker {worker} started" in said.read_text()
            assert "resumed" not in said.read_text()
        file.write_text(RECIPE.replace("{epochs: 3}", "{epochs: 61}"))
        assert kdq(home, *yearly).returncode == 0
        with serving(home) as (running, _):
            assert kdq(home, "schedules", "run", "tiny").returncode == 0
            until(lambda: points(home) > 4, "epochs of the quantized student", 300)
            kill_all(home)
            running.wait(60)
        with serving(home) as (_, said):
            until(lambda: " of 'tiny' is resumed: its process died" in said.read_text(), "the run is resumed", 300)
            until(lambda: last(home)["state"] in ("Completed", "Failed"), "the end of the resumed run", 300)
            assert last(home)["state"] == "Completed", said.read_text()
        versions = json.loads(kdq(home, "models", "--json").stdout)
        assert sorted(int(one["version"]) for one in versions) == [1, 2]
    finally:
        kdq(home, "down")


def test_after_an_outage_of_two_ticks_one_run_catches_up(prefect_site: Site, tiny_flow: str) -> None:
    from prefect.client.orchestration import get_client

    facts = deploy(prefect_site, Recipe(name="tick", workload="digits"), interval_seconds=5, module_path=tiny_flow)
    with get_client(sync_client=True) as client:
        try:

            def due() -> list[str]:
                return [str(run.state_name) for run in runs_of(client, facts["id"])]

            until(lambda: len(due()) >= 3, "three runs are due", 300)
            lines = look(client, "kdq", outage=True)
            states = due()
            assert len(lines) == states.count("SkippedLate") >= 2
            assert len(states) - states.count("SkippedLate") <= 2  # the newest, and one that was due meanwhile
        finally:
            client.delete_deployment(facts["id"])
