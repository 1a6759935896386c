"""What other commands see of a run: its diary, `kdq runs`, `kdq logs`, `kdq status`, `kdq cancel`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import RecipeError, StageError
from kdq_core.recipe.spec import Site
from kdq_flows.facts.parts import StageFacts, VersionFacts
from kdq_flows.facts.result import RunResult
from kdq_flows.facts.state import RunState, StageNow, StageState, file_of, main_of, running
from kdq_flows.observer import Silent
from kdq_flows.owner import host, owner_tag
from kdq_flows.run import pace
from kdq_flows.run.diary import Diary
from kdq_flows.run.leases import lease
from kdq_flows.run.pace import in_words
from kdq_flows.seeing.cancel import cancel, kept
from kdq_flows.seeing.logs import lines, logs_of
from kdq_flows.seeing.runs import find, row_of, runs_of
from kdq_flows.seeing.status import status
from tests.flows.leasing import CPU

DEAD = f"{host()}:1:1:another-boot"
RESULT = RunResult(
    run="r-1", status="completed", seconds=3.0, version=VersionFacts(name="r", version=2),
    stages=(StageFacts(name="distill", key="a" * 64, state="ran", seconds=2.0),
            StageFacts(name="export", key="b" * 64, state="cached", seconds=0.1)),
    models={"int8": {"bytes": 9.0, "top1": 0.97}},
)  # fmt: skip


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def plant(site: Site, run: str, **fields: Any) -> RunState:
    """A run of a home, which by default is running in this process."""
    told = {"recipe": run.partition("-")[0], "owner": owner_tag(), "kdq": "0", "device": "cpu", "began": 1000.0}
    state = RunState(run=run, **(told | fields))
    file_of(site, run).parent.mkdir(parents=True, exist_ok=True)
    file_of(site, run).write_text(state.model_dump_json())
    return state


def ended_by(site: Site, error: BaseException) -> None:
    """A run whose body raises an error."""

    def body() -> None:
        with Diary(site, "r", None, "r-1") as diary:
            diary.facts = lambda: RESULT
            raise error

    with pytest.raises(type(error)):
        body()


def log(site: Site, run: str, name: str, text: str) -> Path:
    path = site.home / "logs" / run / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_while_a_run_lasts_others_see_its_stage_and_how_far_it_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "PAUSE", 0.0)
    with Diary(site, "r", None, "r-1") as diary:
        diary.facts, diary.ended = lambda: RESULT, lambda: RESULT.stages
        diary.stage_started("distill")
        diary._written = 0.0
        diary.progress({"event": "progress", "stage": "distill", "done": 4, "total": 10, "note": "loss 0.5"})
        (state,) = running(site)
        assert (state.run, state.recipe, state.owner) == ("r-1", "r", owner_tag())
        (now,) = state.now
        assert (now.name, now.done, now.total, now.note) == ("distill", 4, 10, "loss 0.5")
        diary.stage_ended("distill", "ran", 2.0)
        diary.message("something to know")
        (state,) = running(site)
        assert (state.now, state.stages) == ((), (StageState(name="distill", state="ran", seconds=2.0, key="a" * 64),))
    (state,) = runs_of(site)
    assert (state.seen, state.version, state.metric) == ("completed", VersionFacts(name="r", version=2), {"top1": 0.97})
    assert [stage.key[0] for stage in state.stages] == ["a", "b"]
    words = (site.home / "logs" / "r-1" / "run.log").read_text().splitlines()
    assert [re.sub(r"\d+ s, about \d+ s", "N s, about M s", line[20:]) for line in words] == [
        "distill started", "distill 40% after N s, about M s left: loss 0.5", "distill ran in 2.0 s",
        "something to know", "the run completed",
    ]  # fmt: skip


def test_steps_that_bring_little_write_no_line_and_no_state(site: Site) -> None:
    with Diary(site, "r", None, "r-1") as diary:
        diary.facts = lambda: RESULT
        diary.stage_started("distill")
        before = file_of(site, "r-1").read_bytes()
        for done in range(1, 10):
            diary.progress({"stage": "distill", "done": done, "total": 100})
        assert file_of(site, "r-1").read_bytes() == before
        assert "%" not in (site.home / "logs" / "r-1" / "run.log").read_text()


@pytest.mark.parametrize(
    ("error", "told"),
    [(KeyboardInterrupt(), ("interrupted", None)), (StageError("the disk is gone"), ("failed", "the disk is gone"))],
)
def test_a_run_that_an_exception_ends_says_so(site: Site, error: BaseException, told: tuple[str, str]) -> None:
    ended_by(site, error)
    (state,) = runs_of(site)
    assert (state.seen, state.error) == told


def test_a_wrong_request_leaves_no_run(site: Site) -> None:
    ended_by(site, RecipeError("no such stage"))
    assert runs_of(site) == []


def test_a_run_whose_facts_cannot_be_gathered_has_failed_and_its_own_error_stays(site: Site) -> None:
    def facts() -> RunResult:
        raise StageError("an entry is damaged")

    for run, error in (("r-1", None), ("r-2", StageError("the disk is gone"))):
        with contextlib.suppress(StageError), Diary(site, "r", None, run) as diary:
            diary.facts = facts
            if error is not None:
                raise error
    assert {one.run: (one.seen, one.error) for one in runs_of(site)} == {
        "r-1": ("failed", "an entry is damaged"), "r-2": ("failed", "the disk is gone"),
    }  # fmt: skip


def test_a_diary_that_cannot_be_written_costs_one_message(site: Site) -> None:
    site.home.mkdir()
    (site.home / "runs").write_text("a file")
    heard = Heard()
    with Diary(site, "r", heard, "r-1") as diary:
        diary.facts = lambda: RESULT
        diary.stage_started("distill")
        diary.stage_ended("distill", "ran", 2.0)
    (said,) = heard.said
    assert said.startswith(
        f"other commands cannot see this run: cannot write the state of the run to {str(site.home)!r}"[:-1]
    )


def test_runs_are_listed_newest_first_with_what_they_did(site: Site) -> None:
    plant(site, "r-1").after(RESULT, 1003.0)
    plant(site, "a-1", **plant(site, "a-1").after(RESULT, 1003.5).model_dump(exclude={"run"}))
    plant(site, "b-1", began=2000.0, owner=DEAD)
    plant(site, "c-1", began=3000.0)
    rows = [row_of(one, now=3010.0) for one in runs_of(site)]
    assert [(row["run"], row["status"], row["seconds"]) for row in rows[:2]] == [
        ("c-1", "running", 10.0), ("b-1", "killed", None),
    ]  # fmt: skip
    assert next(row for row in rows if row["run"] == "a-1") == {
        "run": "a-1", "recipe": "a", "status": "completed", "when": "1970-01-01T00:16:40+00:00", "seconds": 3.5,
        "stages": {"ran": 1, "cached": 1}, "branches": 0, "metric": {"top1": 0.97},
        "version": {"name": "r", "version": 2}, "error": None,
    }  # fmt: skip
    assert find(site, "b").run == "b-1"


def test_the_main_metric_is_top1_or_what_is_compared_with_float() -> None:
    assert main_of({"loss": 1.0, "top1": 0.5}) == {"top1": 0.5}
    assert main_of({"bytes": 3.0, "rmse": 0.2, "rmse_difference": 0.0}) == {"rmse": 0.2}
    assert main_of({"bytes": 3.0}) == {}


def test_logs_come_in_the_order_of_the_run_and_those_of_its_branches_with_them(site: Site) -> None:
    state = plant(site, "r-1")
    log(site, "r-1", "prefect", "plumbing\n")
    log(site, "r-1", "distill", "epoch 1\n")
    log(site, "r-1", "run", "distill started\n")
    log(site, "r-1.seed=1", "evaluate", "")
    log(site, "r-10", "distill", "another run\n")
    for at, path in enumerate(logs_of(site, "r-1").values()):
        os.utime(path, (at, at))
    assert list(logs_of(site, "r-1")) == ["run", "prefect", "distill", "evaluate@seed=1"]
    assert list(lines(site, state, None, follow=False)) == [("run", "distill started\n"), ("distill", "epoch 1\n")]
    assert list(lines(site, state, "prefect", follow=False)) == [("prefect", "plumbing\n")]


def test_a_log_that_is_not_there_is_told_with_those_that_are(site: Site) -> None:
    state = plant(site, "r-1")
    with pytest.raises(RecipeError) as caught:
        list(lines(site, state, None, follow=False))
    assert str(caught.value) == (
        f"run 'r-1' has no logs: {str(site.home / 'logs' / 'r-1')!r} is gone or empty; run its recipe again"
    )
    log(site, "r-1", "distill", "")
    with pytest.raises(RecipeError) as caught:
        list(lines(site, state, "distil", follow=False))
    assert str(caught.value) == (
        "run 'r-1' has no log of a stage 'distil'; did you mean 'distill'? It has: distill. A stage that was cached "
        "has its log with the run that computed it (`kdq cache ls`)"
    )


def test_following_gives_whole_lines_as_they_come_until_the_run_has_ended(site: Site) -> None:
    state = plant(site, "r-1")
    path = log(site, "r-1", "distill", "epoch 1\nepo")
    ended = state.model_copy(update={"status": "completed"})
    news = iter([
        lambda: path.write_text("epoch 1\nepoch 2\n"),
        lambda: log(site, "r-1", "export", "no end of line"),
    ])  # fmt: skip
    states = iter([state, state, ended])
    got = lines(site, state, None, follow=True, again=lambda: next(states), sleep=lambda _seconds: next(news)())
    assert list(got) == [("distill", "epoch 1\n"), ("distill", "epoch 2\n"), ("export", "no end of line")]


def test_status_tells_the_stage_its_epoch_and_who_holds_the_device(site: Site) -> None:
    plant(site, "old-1", owner=DEAD)
    plant(site, "r-1", now=(StageNow(name="distill", since=1001.0, done=1, total=4, note="loss 0.5"),))
    log(site, "r-1", "distill", "2026-01-02 03:04:05 epoch 3: loss 1\n2026-01-02 03:04:06 epoch 4: loss 1\n")
    with lease(site, CPU):
        found = status(site)
    assert found["runs"] == [{
        "run": "r-1", "recipe": "r", "pid": os.getpid(), "host": host(), "since": "1970-01-01T00:16:40+00:00",
        "device": "cpu", "ended": [],
        "now": [{"stage": "distill", "since": "1970-01-01T00:16:41+00:00", "progress": 0.25, "epoch": 4,
                 "note": "loss 0.5"}],
    }]  # fmt: skip
    assert found["devices"] == [{"device": "cpu-1", "state": "held", "share": 1.0, "pid": os.getpid(), "run": "r-1"}]
    assert [(row["name"], row["state"]) for row in found["servers"]] == [
        ("prefect", "stopped"), ("mlflow", "stopped"), ("worker", "stopped"),
    ]  # fmt: skip
    assert status(site)["devices"] == [{"device": "cpu-1", "state": "free", "share": 1.0, "pid": None, "run": None}]


@pytest.fixture
def child() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a Python process that prints a line once it is ready; it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        started.append(done)
        assert done.stdout is not None
        assert done.stdout.readline()
        return done

    yield start
    for one in started:
        one.kill()
        one.communicate()


def test_cancel_ends_the_process_of_the_run_and_says_what_is_kept(site: Site, child: Any) -> None:
    process = child("import time; print('ready', flush=True); time.sleep(60)")
    stages = (StageState(name="train_teacher", state="cached", seconds=0.1),)
    plant(site, "r-1", owner=owner_tag(process.pid), stages=stages, now=(StageNow(name="distill", since=1.0),))
    assert cancel(site, "r") == (
        "run 'r-1' was ended in distill; kept: train_teacher in the store; run the same command to resume"
    )
    assert process.wait(5) == -15
    with pytest.raises(RecipeError) as caught:
        cancel(site, "r-1")
    assert str(caught.value) == (
        "run 'r-1' is not running: it is interrupted already. `kdq status` lists the runs that are running"
    )


def test_a_process_that_does_not_leave_is_told_with_the_remedy(site: Site, child: Any) -> None:
    process = child(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    plant(site, "r-1", owner=owner_tag(process.pid))
    with pytest.raises(StageError) as caught:
        cancel(site, "r-1", seconds=0.1)
    assert str(caught.value) == (
        f"run 'r-1' was asked to leave 0.1 s ago, and its process {process.pid} still runs; end it with "
        f"`kill -9 {process.pid}`: finished stages are kept in any case"
    )


def test_what_cannot_be_cancelled_is_an_error_that_says_why(site: Site) -> None:
    plant(site, "done-1", status="completed")
    plant(site, "far-1", owner="elsewhere:1:2:3")
    plant(site, "dead-1", owner=DEAD, began=1.0)
    with pytest.raises(RecipeError) as caught:
        cancel(site, "done-1")
    assert str(caught.value) == (
        "run 'done-1' is not running: it is completed already. `kdq status` lists the runs that are running"
    )
    with pytest.raises(RecipeError) as caught:
        cancel(site, "dead-1")
    assert str(caught.value) == (
        "run 'dead-1' is not running: its process is gone; `kdq reconcile` closes what it left open in Prefect and "
        "MLflow. `kdq status` lists the runs that are running"
    )
    with pytest.raises(RecipeError) as caught:
        cancel(site, "far-1")
    assert str(caught.value) == (
        f"run 'far-1' is driven by a process on the machine 'elsewhere', and this is {host()!r}; call `kdq cancel` "
        "there"
    )
    with pytest.raises(RecipeError) as caught:
        cancel(site, "don-1")
    assert str(caught.value) == (
        "no run named 'don-1'; did you mean 'done-1'? The last runs: done-1, far-1, dead-1; name one, or a recipe's "
        "file for its last run"
    )


def test_a_run_that_ended_before_the_signal_is_not_called_cancelled() -> None:
    state = RunState(run="r-1", recipe="r", owner=DEAD, kdq="0", device="cpu", began=0.0, status="completed")
    assert kept(state) == "run 'r-1' ended by itself before the signal: completed"


def test_durations_in_words() -> None:
    assert [in_words(one) for one in (41, 180, 7500, 300_000)] == ["41 s", "3 min", "2 h 5 min", "3 d 11 h"]


def test_the_commands_show_a_planted_run(call: Any, tmp_path: Path) -> None:
    site = Site(home=tmp_path / "home")
    assert call("runs")[1] == f"{str(site.home)!r} has no run yet; make one with `kdq run FILE`\n"
    plant(site, "a-1", began=time.time() - 5, now=(StageNow(name="distill", since=time.time(), done=1, total=2),))
    log(site, "a-1", "distill", "epoch 1\n")
    log(site, "a-1", "run", "distill started\n")
    code, out, _ = call("runs", "--json", "--limit", "1")
    assert (code, [row["run"] for row in json.loads(out)]) == (0, ["a-1"])
    assert "running" in call("runs")[1]
    assert call("logs", "a-1")[1] == "==> run <==\ndistill started\n\n==> distill <==\nepoch 1\n"
    assert call("logs", "a", "--stage", "distill")[1] == "epoch 1\n"
    assert json.loads(call("status", "--json")[1])["runs"][0]["now"][0]["stage"] == "distill"
    assert "50%" in call("status")[1]
    code, out, err = call("cancel", "b")
    assert (code, out) == (2, "")
    assert err.startswith("error: no run named 'b'")
