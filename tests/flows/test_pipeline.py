"""What a stage raises that runs in the process of the run."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdq_core.errors import TransientError, UnforeseenError
from kdq_core.plugins.contract import Needs
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.recipe.stages import RetrySpec
from kdq_core.store.claims import Claim
from kdq_flows.observer import Silent
from kdq_flows.run import in_worker, pipeline
from kdq_flows.run.leases import Leased
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


class Hearing(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_only_the_stage_that_measures_time_asks_for_the_machine_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    @contextlib.contextmanager
    def lease(site: Site, needs: Needs, *, on_wait: Callable[[str], None], **_: object) -> Iterator[Leased]:
        asked.append(needs.alone)
        on_wait("why")
        yield Leased((), (site.device,))

    hearing = Hearing()
    run = pipeline.Pipeline(Recipe.model_validate({"name": "x", "workload": "digits"}), site, hearing)
    monkeypatch.setattr(run, "_request", lambda *_: {})
    monkeypatch.setattr(in_worker, "lease", lease)
    monkeypatch.setattr(in_worker, "run_child", lambda *_, **__: None)
    monkeypatch.setattr(run.store, "get", lambda key: key)
    heavy = [node for node in run.plan.nodes if node.heavy]
    for node in heavy:
        run._in_worker(node, "k", dict.fromkeys(node.parents.values(), "d"), "", Claim())
    assert dict(zip((node.name for node in heavy), asked, strict=True)) == {
        **dict.fromkeys((node.name for node in heavy), False), "evaluate": True
    }  # fmt: skip
    assert hearing.messages == [f"{node.name} waits: why" for node in heavy]


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

    task = SimpleNamespace(submit=lambda *_: Late())
    monkeypatch.setattr(study_flow, "stage_task", SimpleNamespace(with_options=lambda **_: task))
    plan = SimpleNamespace(recipe=SimpleNamespace(retry_of=lambda _name: RetrySpec()))
    one = SimpleNamespace(node=SimpleNamespace(name="distill"), branches=("a", "b"))
    done = study_flow._start(SimpleNamespace(plan=plan, errors={}), one, {})  # type: ignore[arg-type]
    assert done.result(0) is None
