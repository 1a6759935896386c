"""The warm worker: what a forked stage has and has not of a new process, and what happens when either side dies."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import StageError, TransientError
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.owner import start_time
from kdq_flows.run.leases import lease
from kdq_flows.run.supervisor import run_child
from kdq_flows.run.warm import WarmChild, WarmWorker, late_imports, possible
from tests.flows.leasing import CPU

MODULES = str(Path(__file__).parent / "modules")
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def warm(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[WarmWorker]:
    monkeypatch.setenv("PYTHONPATH", MODULES, prepend=os.pathsep)
    monkeypatch.setenv("TEST_EARLY", "set before the worker began")
    then = ["no_such_module", "slow_to_import"]
    with closing(WarmWorker(site, site.home / "logs" / "warm.log", ["wave"], then, "stage_body:main")) as worker:
        yield worker


def run(site: Site, starter: WarmWorker, body: str, **more: Any) -> dict[str, Any]:
    """Run `body` as a stage; its result."""
    more = {"on_event": lambda _event: None, "timeout_seconds": 60.0} | more
    with lease(site, CPU) as leased:
        return run_child(
            {"body": body},
            site=site,
            descriptors=leased.descriptors,
            log=site.home / "logs" / "stage.log",
            argv=[sys.executable, "-m", "stage_body"],
            starter=starter,
            **more,
        )


def gone(pid: int) -> bool:
    for _ in range(200):
        if start_time(pid) is None:
            return True
        time.sleep(0.02)
    return False


LOOK = """
emit('result', parent=os.getppid(), session=os.getsid(0) == os.getpid(), warm='wave' in sys.modules,
     all='slow_to_import' in sys.modules, marked=hasattr(sys, 'mark'), late=os.environ.get('TEST_LATE'),
     early=os.environ.get('TEST_EARLY'),
     open=sorted(os.readlink(f'/proc/self/fd/{n}').partition(':')[0] for n in range(3, 64)
                 if os.path.exists(f'/proc/self/fd/{n}')))
"""


def test_a_child_is_forked_warm_with_todays_environment_and_only_its_own_descriptors(
    site: Site, warm: WarmWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_LATE", "set after the worker began")
    monkeypatch.delenv("TEST_EARLY")
    seen = run(site, warm, LOOK)
    assert (seen["parent"], seen["session"], seen["warm"]) == (warm.pid, True, True)
    assert (seen["late"], seen["early"]) == ("set after the worker began", None)
    assert [name for name in seen["open"] if not name.startswith("/")] == ["pipe"]
    assert [Path(name).name for name in seen["open"] if name.startswith("/")] == ["cpu-1.lock", "machine.lock"]


def test_nothing_of_one_stage_is_left_in_the_next(site: Site, warm: WarmWorker) -> None:
    first = run(site, warm, "sys.mark = 1\nos.environ['TEST_LATE'] = 'no'" + LOOK)
    second = run(site, warm, LOOK)
    assert (first["marked"], first["late"]) == (True, "no")
    assert (second["marked"], second["late"]) == (False, None)


def test_a_stage_that_measures_begins_after_every_import_and_what_cannot_be_imported_is_logged(
    site: Site, warm: WarmWorker
) -> None:
    assert run(site, warm, LOOK, measures=True)["all"] is True
    assert (site.home / "logs" / "warm.log").read_text() == (
        "'no_such_module' is not imported beforehand: ModuleNotFoundError: No module named 'no_such_module'\n"
    )


def test_a_worker_that_imports_for_too_long_is_ended_with_the_stage_and_the_next_stage_is_started_anew(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", MODULES, prepend=os.pathsep)
    monkeypatch.setenv("TEST_IMPORT_SECONDS", "600")
    with closing(
        WarmWorker(site, site.home / "logs" / "warm.log", [], ["slow_to_import"], "stage_body:main")
    ) as worker:
        with pytest.raises(StageError, match=r"longer than its limit of 0\.5 s"):
            run(site, worker, LOOK, timeout_seconds=0.5, measures=True)
        assert gone(worker.pid)
        assert run(site, worker, LOOK)["parent"] == os.getpid()


@pytest.mark.parametrize("measures", [True, False])
def test_a_stage_that_is_cancelled_before_it_began_never_begins_and_leaves_the_worker_to_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measures: bool
) -> None:
    monkeypatch.setenv("PYTHONPATH", MODULES, prepend=os.pathsep)
    monkeypatch.setenv("TEST_IMPORT_SECONDS", "2")
    cancelled = threading.Event()
    cancelled.set()
    with closing(
        WarmWorker(site, site.home / "logs" / "warm.log", [], ["slow_to_import"], "stage_body:main")
    ) as worker:
        time.sleep(0.5)  # it imports by now
        with pytest.raises(StageError) as caught:
            run(site, worker, f"open({str(tmp_path / 'began')!r}, 'w')", cancelled=cancelled, measures=measures)
        assert str(caught.value) == "the stage was cancelled and its worker ended"
        assert run(site, worker, LOOK)["parent"] == worker.pid
    assert not (tmp_path / "began").exists()


def test_where_the_worker_was_killed_a_stage_is_started_anew(site: Site, warm: WarmWorker) -> None:
    assert run(site, warm, LOOK)["parent"] == warm.pid
    os.kill(warm.pid, signal.SIGKILL)
    seen = run(site, warm, LOOK)
    assert (seen["parent"], seen["warm"]) == (os.getpid(), False)


def test_a_worker_killed_under_a_stage_takes_the_stage_with_it_and_that_is_transient(
    site: Site, warm: WarmWorker
) -> None:
    pids: list[int] = []

    def heard(event: dict[str, Any]) -> None:
        pids.append(event["pid"])
        os.kill(warm.pid, signal.SIGKILL)

    with pytest.raises(TransientError, match=r"^the stage's worker was killed by SIGKILL before it gave a result"):
        run(site, warm, "emit('pid', pid=os.getpid()); time.sleep(60)", on_event=heard)
    assert gone(pids[0])


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_warm import WarmWorker, run
from kdq_core.recipe.spec import Site
site = Site(home=Path(sys.argv[1]), threads=1)
warm = WarmWorker(site, site.home / "logs" / "warm.log", [], [], "stage_body:main")
def heard(event):
    print(warm.pid, event["pid"], flush=True)
run(site, warm, "emit('pid', pid=os.getpid()); time.sleep(60)", on_event=heard)
"""


def test_worker_and_stage_die_with_the_run(site: Site) -> None:
    path = os.pathsep.join((MODULES, os.environ.get("PYTHONPATH", "")))
    words = [sys.executable, "-c", PARENT, str(site.home), str(Path(__file__).parent)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(start_time(pid) for pid in pids)
        parent.kill()
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(("said", "code"), [(b"code -15", -15), (b"", -9)])
def test_a_child_that_is_killed_before_it_reads_the_answer_has_died(said: bytes, code: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = WarmChild(ours)
    theirs.send(b"pid 7")
    assert child.hear(1)
    if said:
        theirs.send(said)
    theirs.close()  # with the answer unread
    assert (child.wait(1), child.pid) == (code, 7)


def test_a_process_that_may_hold_a_gpu_is_not_forked(tmp_path: Path) -> None:
    assert possible(Site(home=tmp_path)) is True
    assert possible(Site(home=tmp_path, device="cuda")) is False


def recipe(**more: Any) -> Recipe:
    return Recipe.model_validate({"name": "tiny", "workload": "digits", "teacher": {"fit": {"epochs": 1}}} | more)


def test_plugins_say_what_they_import_late_and_it_is_imported_once() -> None:
    catalog, every = Catalog.load(), {"stage", "evaluator", "target"}
    named = late_imports(recipe(evaluate=["quality", "size"]), catalog, every)
    assert "torchmetrics.functional.classification" in named
    assert "kdq_targets.onnx_export" in named
    assert len(set(named)) == len(named)
    assert "torchmetrics.functional.classification" not in late_imports(recipe(evaluate=["size"]), catalog, every)
    assert late_imports(recipe(evaluate=["quality", "size"]), catalog, {"stage", "workload"}) == []
