"""The policies of schedules on the runs of a Prefect client that is not there."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Running, Scheduled

from kdq_flows.owner import PREFECT_TAG, host
from kdq_flows.prefect.due import RESUMED, as_due, look, policy_of, skipped

NOW = datetime.now(UTC)
RECIPE = {"name": "nightly"}
DEAD = f"{PREFECT_TAG}{host()}:1:2:3"


class Client:
    """Deployments and runs in memory, with the calls that KDQ makes."""

    def __init__(self, *runs: FlowRun, paused: bool = False, **policy: Any) -> None:
        parameters = {"recipe": RECIPE, "missed": "one", "overlap": "skip", "allowed_lag_seconds": 60.0, **policy}
        self.deployment = SimpleNamespace(id=uuid4(), name="nightly", paused=paused, parameters=parameters)
        self.runs = {run.id: run for run in runs}
        for run in runs:
            run.deployment_id, run.parameters = self.deployment.id, {**parameters, **run.parameters}

    def read_deployments(self, **_asked: Any) -> list[Any]:
        return [self.deployment]

    def read_flow_runs(self, **_asked: Any) -> list[FlowRun]:
        return list(self.runs.values())

    def read_flow_run(self, identity: UUID) -> FlowRun:
        return self.runs[identity]

    def update_flow_run(self, identity: UUID, tags: list[str]) -> None:
        self.runs[identity].tags = tags

    def set_flow_run_state(self, identity: UUID, state: Any, force: bool = False) -> None:
        run = self.runs[identity]
        run.state, run.state_type = state, state.type


def run(name: str, due: float, state: Any, began: float | None = None, **fields: Any) -> FlowRun:
    """A flow run; times are seconds before now."""
    fields = {"auto_scheduled": True, "run_count": 0 if began is None else 1, "id": uuid4(), **fields}
    start = None if began is None else NOW - timedelta(seconds=began)
    times = {"expected_start_time": NOW - timedelta(seconds=due), "start_time": start}
    return FlowRun(name=name, flow_id=uuid4(), state=state, state_type=state.type, **times, **fields)


def states(client: Client) -> dict[str, str]:
    return {run.name: str(run.state and run.state.name) for run in client.runs.values()}


def test_after_an_outage_one_run_is_left_and_the_others_are_skipped_before_a_process_starts() -> None:
    client = Client(run("c", 10, Scheduled()), run("b", 30, Scheduled()), run("a", 50, Scheduled()))
    assert look(client, "kdq") == []  # type: ignore[arg-type]
    lines = look(client, "kdq", outage=True)  # type: ignore[arg-type]
    assert states(client) == {"c": "Scheduled", "b": "SkippedLate", "a": "SkippedLate"}
    assert [line.split(": missed at ")[0] for line in lines] == [
        "run 'b' of 'nightly' is skipped", "run 'a' of 'nightly' is skipped"
    ]  # fmt: skip
    assert look(client, "kdq", outage=True) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(("missed", "left"), [("none", []), ("all", ["a", "b", "c"])])
def test_the_other_policies_leave_none_or_all(missed: str, left: list[str]) -> None:
    client = Client(*(run(name, age, Scheduled()) for name, age in (("c", 70), ("b", 80), ("a", 90))), missed=missed)
    look(client, "kdq", outage=True)  # type: ignore[arg-type]
    assert sorted(name for name, state in states(client).items() if state == "Scheduled") == left


def test_a_run_that_a_user_asked_for_is_never_skipped() -> None:
    asked = run("asked", 500, Scheduled(), auto_scheduled=False)
    newer = run("newer", 10, Scheduled())
    client = Client(asked, newer, run("old", 500, Scheduled()))
    look(client, "kdq", outage=True)  # type: ignore[arg-type]
    assert states(client) == {"asked": "Scheduled", "newer": "Scheduled", "old": "SkippedLate"}
    assert skipped(client, asked.id) is None  # type: ignore[arg-type]


def test_a_run_that_begins_looks_for_itself_whether_another_one_was_at_work() -> None:
    mine, before = run("mine", 30, Running(), began=1), run("before", 90, Completed(), began=90)
    before.end_time = NOW - timedelta(seconds=20)
    client = Client(mine, before)
    why = skipped(client, mine.id)  # type: ignore[arg-type]
    assert why is not None
    assert why.name == "SkippedOverlap"
    before.end_time = NOW - timedelta(seconds=40)
    assert skipped(client, mine.id) is None  # type: ignore[arg-type]
    assert as_due(run("skipped", 5, Cancelled(name="SkippedOverlap"), began=5)).began is None


def test_a_run_whose_process_died_is_resumed_once_and_what_was_due_meanwhile_is_skipped() -> None:
    died = run("died", 90, Crashed(), began=90, tags=["mine", DEAD])
    client = Client(run("due", 30, Scheduled()), died)
    lines = look(client, "kdq", outage=True)  # type: ignore[arg-type]
    assert lines[0] == "run 'died' of 'nightly' is resumed: its process died"
    assert lines[1].startswith("run 'due' of 'nightly' is skipped: the run 'died' was at work at ")
    assert states(client) == {"died": "AwaitingRetry", "due": "SkippedOverlap"}
    assert died.tags == ["mine", DEAD, RESUMED]
    assert skipped(client, died.id) is None  # type: ignore[arg-type]
    client.set_flow_run_state(died.id, Crashed())
    assert look(client, "kdq", outage=True) == []  # type: ignore[arg-type]
    assert states(client)["died"] == "Crashed"


def test_a_run_is_not_resumed_if_a_newer_one_has_begun_or_the_recipe_is_another_or_it_still_lives() -> None:
    def died(**fields: Any) -> FlowRun:
        return run("died", 90, Crashed(), began=90, **{"tags": [DEAD], **fields})

    elsewhere = f"{PREFECT_TAG}elsewhere:1:2:3"
    for client in (
        Client(died(), run("newer", 30, Completed(), began=30)),
        Client(died(parameters={"recipe": {"name": "nightly", "seed": 1}})),
        Client(died(tags=[elsewhere])),
        Client(died(), paused=True),
    ):
        assert look(client, "kdq") == []  # type: ignore[arg-type]
    assert look(Client(died()), "kdq", alive=lambda _owner: True) == []  # type: ignore[arg-type]
    assert look(Client(died()), "kdq") == ["run 'died' of 'nightly' is resumed: its process died"]  # type: ignore[arg-type]


def test_the_policy_cancel_ends_the_run_before() -> None:
    client = Client(run("due", 1, Scheduled()), run("works", 90, Running(), began=90), overlap="cancel")
    assert look(client, "kdq") == ["run 'works' of 'nightly' is cancelled: the next one is due"]  # type: ignore[arg-type]
    assert states(client) == {"due": "Scheduled", "works": "Cancelling"}
    assert look(client, "kdq") == []  # type: ignore[arg-type]


def test_a_deployment_from_before_there_were_policies_skips_what_it_missed() -> None:
    assert policy_of({"recipe": RECIPE, "allowed_lag_seconds": 5.0}).missed == "none"


@pytest.mark.parametrize(("now", "told"), [(Running(), "Crashed"), (Cancelling(), "Cancelled")])
def test_a_signal_leaves_a_run_to_be_resumed_unless_somebody_cancelled_it_in_prefect(
    now: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdq_flows.prefect import scheduled

    one = run("three", 10, now, began=9)
    monkeypatch.setattr(scheduled, "get_client", lambda **_asked: nullcontext(Client(one)))
    state = scheduled._to_resume(Cancelled(message="interrupted in distill"), one.id)
    assert (state.name, state.message) == (told, "interrupted in distill")
