"""One node from a request of plain data: what it waits for, what it refuses, and what its answer says."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import TransientError
from kdq_core.plugins.contract import Needs
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import Checkpoint
from kdq_core.store.store import Entry
from kdq_flows.owner import host, owner_tag
from kdq_flows.run import node as module
from kdq_flows.run.executors import Here
from kdq_flows.run.leases import Leased
from kdq_flows.run.node import Driving, NodeAnswer, run_node
from kdq_flows.run.pipeline import Pipeline

Child = Callable[..., None]


def commit(run: Pipeline, title: str, key: str) -> Entry:
    with run.store.draft(key) as draft:
        (draft / "w").write_bytes(b"weights")
        record = Checkpoint(slot="teacher", weights="w", parameters=1)
        return run.store.commit(draft, stage=title, key=key, parts={}, record=record)


@pytest.fixture
def run(site: Site) -> Pipeline:
    return Pipeline(Recipe.model_validate({"name": "x", "workload": "digits"}), site, name="x-1", tracked=False)


@pytest.fixture
def request_(run: Pipeline) -> dict[str, Any]:
    """The request about the first stage, as it crosses to another process."""
    first = run.plan.nodes[0]
    stage = run._request(first, first.key({}), {})
    request = {"stage": stage, "needs": first.needs.model_dump(), "log": "x-1/train_teacher.log"}
    found: dict[str, Any] = json.loads(json.dumps(request | {"site": run.plan.site.model_dump(mode="json")}))
    return found


@pytest.fixture
def child(run: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Instead of a child process: says two things, and commits; keeps how it was called."""
    calls: list[dict[str, Any]] = []

    def work(stage: dict[str, Any], *, on_event: Any, **how: Any) -> None:
        calls.append({"stage": stage, **how})
        on_event({"event": "progress", "stage": stage["title"], "done": 1, "total": 2, "note": ""})
        on_event({"event": "epoch", "record": {"epoch": 1, "values": {"train/loss": 0.5}}})
        commit(run, stage["title"], stage["key"])

    monkeypatch.setattr(module, "run_child", work)
    return calls


def test_an_answer_is_plain_data_with_the_times_of_its_events(
    request_: dict[str, Any], child: list[dict[str, Any]], site: Site
) -> None:
    answer = NodeAnswer.model_validate_json(json.dumps(run_node(request_)))
    assert [event["event"] for event in answer.events] == ["begun", "epoch"]
    assert all(isinstance(event["at"], float) for event in answer.events)
    assert (answer.key, answer.state, answer.error) == (request_["stage"]["key"], "ran", None)
    assert (answer.by, answer.store) == (owner_tag(), str(site.store))
    (call,) = child
    assert Site.model_validate(call["stage"]["site"]) == site.at("cpu")
    assert call["log"] == site.home / "logs" / "x-1" / "train_teacher.log"
    assert len(call["descriptors"]) == 3  # of the machine, the slot and the claim: the child holds them until it ends


def test_an_entry_that_came_meanwhile_is_shared_and_no_child_starts(
    request_: dict[str, Any], run: Pipeline, child: list[dict[str, Any]]
) -> None:
    commit(run, "train_teacher", request_["stage"]["key"])
    heard: list[dict[str, Any]] = []
    answer = NodeAnswer.model_validate(run_node(request_, Driving(heard.append)))
    assert (answer.state, answer.events, child) == ("shared", (), [])
    assert [event["event"] for event in heard] == ["shared"]


def test_a_request_without_a_site_runs_at_the_site_of_the_working_machine(
    request_: dict[str, Any], child: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDQ_HOME", str(tmp_path / "there"))
    monkeypatch.setenv("KDQ_THREADS", "1")
    answer = NodeAnswer.model_validate(run_node(request_ | {"site": None}))
    assert answer.store == str(tmp_path / "there" / "store")
    assert child[0]["site"].home == tmp_path / "there"


def test_a_worker_with_another_machine_refuses_and_names_both(
    request_: dict[str, Any], child: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    request_["site"]["threads"] = 3
    answer = NodeAnswer.model_validate(run_node(request_))
    assert child == []
    assert answer.error is not None
    assert (answer.error.type, answer.error.message) == (
        "StageError",
        f"the worker on {host()!r} cannot compute 'train_teacher', because its results would differ from those of the "
        "machine that planned the run (threads: 3 here, 1 planned); set KDQ_THREADS and the other variables alike on "
        "both, or use a worker on such a machine",
    )


def test_an_error_crosses_with_its_class_and_the_events_before_it(
    request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, on_event: Any, **__: object) -> None:
        on_event({"event": "note", "text": "halved"})
        raise TransientError("busy")

    monkeypatch.setattr(module, "run_child", fail)
    answer = NodeAnswer.model_validate(run_node(request_))
    assert [event["event"] for event in answer.events] == ["begun", "note"]
    with pytest.raises(TransientError, match=r"^busy$"):
        answer.raise_error()


def test_a_cancelled_node_starts_no_child(request_: dict[str, Any], child: list[dict[str, Any]]) -> None:
    cancelled = threading.Event()
    cancelled.set()
    answer = NodeAnswer.model_validate(run_node(request_, Driving(cancelled=cancelled)))
    assert (answer.cancelled, child) == (True, [])


def test_only_stages_that_measure_time_ask_for_the_machine_alone(
    run: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    @contextlib.contextmanager
    def lease(site: Site, needs: Needs, *, on_wait: Callable[[str], None], **_: object) -> Iterator[Leased]:
        asked.append(needs.alone)
        on_wait("why")
        yield Leased((), (site.device,))

    monkeypatch.setattr(module, "lease", lease)
    monkeypatch.setattr(module, "run_child", lambda *_, **__: None)
    heavy, said = [node for node in run.plan.nodes if node.heavy], list[str]()
    for number, one in enumerate(heavy):
        stage = run._asking(one) | {"key": f"{number:064}", "parts": {}}
        request = {"stage": stage, "needs": one.needs.model_dump(), "log": "x"}
        Here(run.plan.site).submit(request, lambda event: said.append(event.get("text", "")))
    assert dict(zip((one.name for one in heavy), asked, strict=True)) == {
        **dict.fromkeys((one.name for one in heavy), False), "place": True, "evaluate": True
    }  # fmt: skip
    assert list(filter(None, said)) == [f"{one.name} waits: why" for one in heavy]


def test_of_two_threads_that_want_one_key_one_computes_it_and_the_other_waits(
    request_: dict[str, Any], run: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    computes, go, calls, heard = threading.Event(), threading.Event(), list[str](), list[dict[str, Any]]()

    def work(stage: dict[str, Any], **_: object) -> None:
        calls.append(stage["key"])
        computes.set()
        assert go.wait(20)
        commit(run, stage["title"], stage["key"])

    monkeypatch.setattr(module, "run_child", work)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run_node, request_)
        assert computes.wait(20)
        second = pool.submit(run_node, request_, Driving(heard.append))
        while not heard:
            time.sleep(0.01)
        go.set()
    assert [future.result()["state"] for future in (first, second)] == ["ran", "shared"]
    assert len(calls) == 1
    assert [event.get("text", event["event"]) for event in heard] == [
        "train_teacher waits: another run computes it", "shared"
    ]  # fmt: skip


def test_a_node_that_waits_for_another_run_is_cancelled(request_: dict[str, Any], run: Pipeline) -> None:
    cancelled = threading.Event()
    with run.store.claim(request_["stage"]["key"]):
        answer = run_node(request_, Driving(lambda _event: cancelled.set(), cancelled))
    assert answer["cancelled"] is True


def test_a_worker_with_another_store_refuses_before_it_computes(
    request_: dict[str, Any], child: list[dict[str, Any]]
) -> None:
    answer = NodeAnswer.model_validate(run_node(request_ | {"store": "s3://team/kdq"}))
    assert child == []
    assert answer.error is not None
    assert answer.error.message == (
        f"the worker on {host()!r} cannot compute 'train_teacher', because it has the store in its home and the run "
        "has 's3://team/kdq'; set KDQ_STORE alike on both"
    )
