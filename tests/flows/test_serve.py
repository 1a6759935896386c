"""A recurring deployment fires by itself, against a real server and a real worker: guards the pins of FastAPI
(the server imports) and SQLAlchemy (its scheduler creates runs)."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import NAMESPACE_DNS, uuid4, uuid5

import pytest

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.prefect.run_lines import RunLines
from kdq_flows.prefect.schedules import deploy
from kdq_flows.prefect.serve import serve
from kdq_flows.seeing.doctor import check_scheduler, doctor
from kdq_flows.servers import processes


def wait_for(what: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.1)
    return what()


@pytest.mark.rare
@pytest.mark.slow
def test_an_interval_deployment_fires_twice_by_itself_and_a_killed_worker_is_replaced(
    prefect_site: Site, tiny_flow: str
) -> None:
    from prefect.client.orchestration import get_client

    deploy(prefect_site, Recipe(name="tick", workload="digits"), interval_seconds=4, module_path=tiny_flow)
    stop, said = threading.Event(), list[str]()
    thread = threading.Thread(target=serve, args=(prefect_site,), kwargs={"stop": stop, "say": said.append})
    thread.start()
    fired = prefect_site.home / "fired.txt"
    try:
        assert wait_for(lambda: fired.exists() and len(fired.read_text().splitlines()) >= 2, 120), said
        assert wait_for(lambda: any(" ended as " in line for line in said), 30), said
        worker = processes.read_record(prefect_site, "worker")
        assert worker is not None
        with pytest.raises(RecipeError) as caught:
            serve(prefect_site)
        os.kill(worker.pid, signal.SIGKILL)
        assert wait_for(lambda: _worker_pid(prefect_site) not in (None, worker.pid), 30), said
    finally:
        stop.set()
        thread.join()
        with get_client(sync_client=True) as client:
            client.delete_deployment(client.read_deployment_by_name("tiny/tick").id)
    lines = fired.read_text().splitlines()
    assert all(line.startswith("tick 60.0 ") for line in lines)
    assert len({line.split()[2] for line in lines}) == len(lines), "each run is a process of its own"
    assert processes.read_record(prefect_site, "worker") is None
    assert said[-1] == "stopped"
    ended = next(line for line in said if " ended as " in line)
    name = ended.split("'")[1]
    assert re.fullmatch(rf"run '{name}' ended as Completed in [0-9.]+ s", ended)
    assert said.index(f"run {name!r} started") < said.index(ended)
    assert str(caught.value) == (
        f"another 'kdq serve' is at work in {str(prefect_site.home)!r}; end it first, "
        "or choose another home with KDQ_HOME"
    )


def test_a_run_is_told_once_when_it_starts_and_once_when_it_ends() -> None:
    from prefect.client.schemas.objects import FlowRun
    from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Scheduled

    from kdq_flows.prefect.due import RESUMED

    began = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def run(name: str, state: Any, **fields: Any) -> FlowRun:
        at = {"id": uuid5(NAMESPACE_DNS, name), "flow_id": uuid4(), "start_time": began, "run_count": 1, **fields}
        return FlowRun(name=name, state=state, **at)

    said = list[str]()
    lines, late = RunLines("kdq", said.append), {"end_time": began + timedelta(seconds=51.24)}
    lines.tell([run("a", Running()), run("unbegun", Running(), start_time=None)])
    lines.tell([run("a", Running())])
    lines.tell([run("a", Completed(), **late), run("c", Failed(message="StageError: no data\n  at"), **late)])
    lines.tell([run("a", Completed(), **late), run("d", Cancelled(message="no slot"), run_count=0)])
    before = Crashed(timestamp=began)
    lines.tell([run("e", Scheduled(), tags=[RESUMED]), run("f", before, tags=[RESUMED])])
    assert not any("'e'" in line or "'f'" in line for line in said), "one waits, and one ended before"
    assert said == [
        "run 'a' started", "run 'a' ended as Completed in 51.2 s", "run 'c' started",
        "run 'c' ended as Failed in 51.2 s: StageError: no data", "run 'd' did not start: no slot",
    ]  # fmt: skip


def test_scheduled_runs_are_named_like_those_of_kdq_run(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    from kdq_flows.prefect import scheduled as flow

    assert flow.scheduled_flow.flow_run_name is flow.run_name
    recipe = Recipe(name="nightly", workload="digits").model_dump(mode="json")
    monkeypatch.setenv("KDQ_HOME", str(site.home))
    run = SimpleNamespace(parameters={"recipe": recipe})
    monkeypatch.setattr(flow, "runtime", SimpleNamespace(flow_run=run))
    monkeypatch.setattr("kdq_flows.run.logs.time.strftime", lambda _form: "20260102-030405")
    assert [flow.run_name() for _ in range(3)] == [f"nightly-20260102-030405{end}" for end in ("", "-2", "-3")]


def _worker_pid(site: Site) -> int | None:
    record = processes.read_record(site, "worker")
    return record.pid if record is not None and processes.is_running(record) else None


@pytest.mark.rare
def test_the_doctor_finds_a_good_installation_good(prefect_site: Site) -> None:
    rows = doctor(prefect_site)
    assert [row["verdict"] for row in rows] == ["ok"] * 10, rows
    assert rows[0]["detail"] == str(prefect_site.home)
    assert not [path for path in prefect_site.home.iterdir() if path.name.startswith(".probe")]


@pytest.mark.usefixtures("prefect_site")
def test_the_doctor_sees_a_scheduler_that_creates_nothing() -> None:
    with pytest.raises(TimeoutError) as caught:
        check_scheduler(seconds=0)
    assert str(caught.value) == (
        "no run was scheduled within 0 s; install the versions of constraints.txt (SQLAlchemy below 2.1 above all)"
    )


def test_the_doctor_tells_of_a_home_that_cannot_be_written_and_goes_on(site: Site) -> None:
    site.home.write_text("not a folder")
    rows = doctor(site)
    bad = {str(row["check"]): row["verdict"] for row in rows if row["verdict"] != "ok"}
    assert bad == {
        "home can be written": "broken", "Prefect server starts and answers": "broken",
        "an interval deployment gets scheduled runs": "not checked", "clock": "not checked",
    }  # fmt: skip
    assert "File exists" in str(rows[0]["detail"])
