"""What a stage raises that runs in the process of the run."""

from pathlib import Path

from kdq_core.errors import TransientError, UnforeseenError
from kdq_flows.run.pipeline import logged


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
