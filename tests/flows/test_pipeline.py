"""What a stage raises that runs in the process of the run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdq_core.errors import TransientError, UnforeseenError
from kdq_flows.run.logs import logged


def test_a_mistake_is_told_as_a_worker_tells_it_and_its_traceback_is_in_the_stages_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "t.log"
    error = ZeroDivisionError("it is zero")
    error.add_note("the stage 't' of kdq-toys 1.0 raised it")
    told = logged(error, log)
    assert type(told) is UnforeseenError
    assert str(told) == (
        f"ZeroDivisionError: it is zero; the stage 't' of kdq-toys 1.0 raised it; the traceback is in {str(log)!r}"
    )
    assert log.read_text() == "ZeroDivisionError: it is zero\nthe stage 't' of kdq-toys 1.0 raised it\n"


def test_a_connection_that_fails_is_worth_another_try(tmp_path: Path) -> None:
    told = logged(ConnectionRefusedError("refused"), tmp_path / "t.log")
    assert type(told) is TransientError


def test_a_task_that_prefects_server_still_calls_running_has_ended_for_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.states import Completed, Running

    from kdq_flows.prefect import study_flow

    class Late:
        """A future that asks the server for its state until somebody has waited for it."""

        waited = False

        def wait(self) -> None:
            self.waited = True

        @property
        def state(self) -> Any:
            return Completed() if self.waited else Running()

        def add_done_callback(self, call: Any) -> None:
            call(self)

    monkeypatch.setattr(study_flow, "stage_task", lambda *_: SimpleNamespace(submit=lambda *_: Late()))
    one = SimpleNamespace(node=SimpleNamespace(name="distill"), branches=("a", "b"), title="distill")
    done = study_flow._start(SimpleNamespace(errors={}), one, {})  # type: ignore[arg-type]
    assert done.result(0) is None
