import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import RecipeError, StageError, StoreError, TransientError
from kdq_core.recipe.spec import RetrySpec, Site
from kdq_flows.owner import start_time
from kdq_flows.run import supervisor
from kdq_flows.run.leases import lease
from kdq_flows.run.retrying import call_with_retries
from kdq_flows.run.warm import WarmWorker
from tests.flows.leasing import CPU, within

Run = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]

MODULES = str(Path(__file__).parent / "modules")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmWorker]:
    """A warm worker whose children do what the tests write."""
    site = Site(home=tmp_path_factory.mktemp("warm"), threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", MODULES, prepend=os.pathsep)
        worker = WarmWorker(site, site.home / "warm.log", [], [], "stage_body:main")
    with lease(site, CPU) as leased:  # returns when it is warm, so that no test's limit is spent on that
        supervisor.run_child(
            {"body": "emit('result')"},
            site=site,
            descriptors=leased.descriptors,
            timeout_seconds=120,
            on_event=print,
            log=site.home / "first.log",
            starter=worker,
        )
    yield worker
    worker.close()


@pytest.fixture(params=["anew", "forked"])
def starter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> WarmWorker | None:
    """How the child is started; every test that runs one holds for both."""
    monkeypatch.setenv("PYTHONPATH", MODULES, prepend=os.pathsep)
    if request.param == "anew":
        return None
    worker: WarmWorker = request.getfixturevalue("warm")

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the child was not forked")

    monkeypatch.setattr(supervisor, "_start", refused)
    return worker


@pytest.fixture
def run(site: Site, starter: WarmWorker | None) -> Run:
    """Runs a body as the child; gives its result and the events before it."""

    def call(body: str, *, limit: float = 30.0, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        heard: list[dict[str, Any]] = []
        more = {"on_event": heard.append} | more
        with lease(site, CPU) as leased:
            result = supervisor.run_child(
                {"stage": "fit", "big": "x" * 200_000, "body": body},
                site=site,
                descriptors=leased.descriptors,
                timeout_seconds=limit,
                log=log_of(site),
                argv=[sys.executable, "-m", "stage_body"],
                starter=starter,
                **more,
            )
        return result, heard

    return call


def gone(pid: int) -> bool:
    for _ in range(100):
        if start_time(pid) is None:
            return True
        time.sleep(0.02)
    return False


def interrupt(_event: dict[str, Any]) -> None:
    raise KeyboardInterrupt


def log_of(site: Site) -> Path:
    return site.home / "logs" / "stage.log"


def test_a_child_gets_the_request_and_its_events_and_result_come_back_in_order(run: Run, site: Site) -> None:
    result, heard = run(
        "for n in range(3000): emit('epoch', n=n)\n"
        "print('to the log')\n"
        "emit('result', stage=request['stage'], size=len(request['big']), threads=os.environ['OMP_NUM_THREADS'],"
        " cuda=os.environ['CUDA_VISIBLE_DEVICES'], seed=os.environ['PYTHONHASHSEED'])",
    )
    assert result == {
        "event": "result", "stage": "fit", "size": 200_000, "threads": "1", "cuda": "", "seed": "0",
    }  # fmt: skip
    assert [event["n"] for event in heard] == list(range(3000))
    assert log_of(site).read_text() == "to the log\n"


def test_waiting_threads_leave_their_core_to_others_unless_the_user_says_otherwise(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert supervisor.child_environment(site)["GOMP_SPINCOUNT"] == "5000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert "GOMP_SPINCOUNT" not in supervisor.child_environment(site)


def test_matplotlib_keeps_its_files_in_the_home_unless_the_user_says_where(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    assert supervisor.child_environment(site)["MPLCONFIGDIR"] == str(site.home / "matplotlib")
    monkeypatch.setenv("MPLCONFIGDIR", "/elsewhere")
    assert supervisor.child_environment(site)["MPLCONFIGDIR"] == "/elsewhere"


def test_what_nobody_expected_is_told_with_the_log_that_has_its_traceback(run: Run, site: Site) -> None:
    with pytest.raises(StageError) as caught:
        run("emit('error', error={'type': 'UnforeseenError', 'message': 'KeyError: 1 (in x.py:2)'}); sys.exit(1)")
    assert str(caught.value) == f"KeyError: 1 (in x.py:2); the traceback is in {str(log_of(site))!r}"


def test_the_child_inherits_the_lease(run: Run) -> None:
    result, _ = run(
        "def path(fd):\n"
        "    try: return os.readlink(f'/proc/self/fd/{fd}')\n"
        "    except OSError: return ''\n"
        "emit('result', held=any(path(fd).endswith('leases/cpu-1.lock') for fd in os.listdir('/proc/self/fd')))",
    )
    assert result["held"] is True


def test_a_reported_error_is_raised_as_what_it_was(run: Run) -> None:
    with pytest.raises(RecipeError, match=r"^the option is wrong$"):
        run("emit('error', error={'type': 'RecipeError', 'message': 'the option is wrong'}); sys.exit(1)")


def test_a_child_killed_by_a_signal_is_transient_and_its_last_words_are_told(run: Run, site: Site) -> None:
    with pytest.raises(TransientError) as caught:
        run("print('epoch 3 of 9', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)")
    assert str(caught.value) == (
        "the stage's worker was killed by SIGKILL before it gave a result; the machine may be out of memory; "
        f"its last words: 'epoch 3 of 9'; its log is {str(log_of(site))!r}"
    )


def test_a_child_that_leaves_without_a_result_is_transient_and_shows_no_traceback(run: Run, site: Site) -> None:
    with pytest.raises(TransientError) as caught:
        run("raise KeyError('x')")
    assert str(caught.value) == (
        "the stage's worker exited with code 1 before it gave a result; "
        f"its last words: \"KeyError: 'x'\"; its log is {str(log_of(site))!r}"
    )


def test_the_words_of_an_earlier_try_are_not_repeated(run: Run) -> None:
    for words in ("first", "second"):
        with pytest.raises(TransientError, match=f"its last words: '{words}';"):
            run(f"print('{words}', flush=True); os._exit(7)")


def test_a_child_that_ignores_sigterm_is_ended_at_its_limit(
    run: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "TERMINATE_SECONDS", 0.3)
    pids: list[int] = []
    began = time.monotonic()
    with pytest.raises(StageError) as caught:
        run(
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "other = subprocess.Popen([sys.executable, '-c', 'import signal, time;"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'])\n"
            "emit('pids', pids=[os.getpid(), other.pid])\ntime.sleep(60)",
            limit=1.0,
            on_event=lambda event: pids.extend(event["pids"]),
        )
    assert type(caught.value) is StageError
    assert str(caught.value) == (
        "the stage ran longer than its limit of 1 s and was ended; raise 'retry.stage_timeout_seconds' in the recipe, "
        f"or give the stage less to do; its log is {str(log_of(site))!r}"
    )
    assert time.monotonic() - began < 5
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


SLEEPS_IN_C = "signal.signal(signal.SIGTERM, print)\nimport ctypes\nctypes.PyDLL(None).sleep(60)"
"""A native call that holds Python's lock, so that no signal handler of Python runs."""


@pytest.mark.parametrize(("limits", "kind"), [({"limit": 0.5}, StageError), ({"stall_seconds": 0.5}, TransientError)])
def test_a_native_call_that_never_returns_is_ended_at_its_limit(
    run: Run, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], kind: type[Exception]
) -> None:
    monkeypatch.setattr(supervisor, "TERMINATE_SECONDS", 0.3)
    pids: list[int] = []
    with pytest.raises(StageError) as caught:
        run(f"emit('pid', pid=os.getpid())\n{SLEEPS_IN_C}", on_event=lambda e: pids.append(e["pid"]), **limits)
    assert type(caught.value) is kind
    assert gone(pids[0])


def test_a_stage_that_stalls_is_ended_and_one_that_goes_on_is_not(run: Run, site: Site) -> None:
    with pytest.raises(TransientError) as caught:
        run("for n in range(6): emit('step', n=n); time.sleep(0.1)\ntime.sleep(60)", stall_seconds=0.4)
    assert str(caught.value) == (
        "the stage stalled: it showed no progress for 0.4 s ('retry.stall_seconds') and was ended; raise that limit if "
        f"such a pause is usual; its log is {str(log_of(site))!r}"
    )
    _, heard = run("for n in range(6): emit('step', n=n); time.sleep(0.1)\nemit('result')", stall_seconds=0.4)
    assert len(heard) == 6


def test_a_planted_segfault_is_retried(run: Run, site: Site) -> None:
    mark, told = site.home / "tried", []
    body = (
        f"mark = {str(mark)!r}\n"
        "if not os.path.exists(mark):\n    open(mark, 'w').close()\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "emit('result', tries=2)"
    )
    result, _ = call_with_retries(
        lambda: run(body), RetrySpec(backoff_seconds=0), on_retry=lambda _n, error: told.append(str(error))
    )
    assert result["tries"] == 2
    assert told == [
        f"the stage's worker was killed by SIGSEGV before it gave a result; its log is {str(log_of(site))!r}"
    ]


def test_a_child_has_what_it_started_until_it_has_ended(run: Run, site: Site) -> None:
    """A fit that keeps its state still needs the processes that load data."""
    mark = site.home / "other"
    with pytest.raises(KeyboardInterrupt):
        run(
            "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "def end(*_):\n"
            "    time.sleep(0.2)\n"
            f"    print(other.poll(), file=open({str(mark)!r}, 'w'), flush=True)\n"
            "    sys.exit(1)\n"
            "signal.signal(signal.SIGTERM, end)\n"
            "emit('begun')\ntime.sleep(60)",
            on_event=interrupt,
        )
    assert mark.read_text() == "None\n"


def test_cancelling_ends_the_child_and_gives_the_device_back(run: Run, site: Site) -> None:
    cancelled = threading.Event()
    pids: list[int] = []

    def heard(event: dict[str, Any]) -> None:
        pids.append(event["pid"])
        cancelled.set()

    with pytest.raises(StageError, match=r"^the stage was cancelled and its worker ended$"):
        run("emit('pid', pid=os.getpid()); time.sleep(60)", on_event=heard, cancelled=cancelled)
    assert gone(pids[0])
    with lease(site, CPU, check=within(0.5)):
        pass


def test_an_interrupt_that_passes_through_ends_the_child(run: Run) -> None:
    pids: list[int] = []

    def heard(event: dict[str, Any]) -> None:
        pids.append(event["pid"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("emit('pid', pid=os.getpid()); time.sleep(60)", on_event=heard)
    assert gone(pids[0])


def test_what_a_finished_child_left_behind_is_ended_too(run: Run) -> None:
    result, _ = run(
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " pass_fds=[int(os.environ['KDQ_EVENTS_FD'])])\n"
        "emit('result', other=other.pid)",
    )
    assert gone(result["other"])


def test_no_descriptor_is_left_open(run: Run) -> None:
    run("emit('result')")
    before = len(os.listdir("/proc/self/fd"))
    run("emit('result')")
    with pytest.raises(TransientError):
        run("os.kill(os.getpid(), signal.SIGSEGV)")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_cuda_child_sees_its_own_device_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    assert supervisor.child_environment(Site(home=tmp_path, device="cuda:1"))["CUDA_VISIBLE_DEVICES"] == "6"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert supervisor.child_environment(Site(home=tmp_path, device="cuda"))["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_full_disk_is_explained_before_a_child_is_started(
    run: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(supervisor.tempfile, "TemporaryFile", full)
    monkeypatch.setattr(supervisor.subprocess, "Popen", lambda *_, **__: pytest.fail("a child was started"))
    with pytest.raises(StoreError) as caught:
        run("")
    assert str(caught.value) == (
        f"cannot write to {str(site.home / 'logs')!r}: the disk is full; free some space or set KDQ_HOME to a larger "
        "disk, then run again. Nothing was half-written: finished stages are kept"
    )
