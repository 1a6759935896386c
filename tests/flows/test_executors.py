"""The protocol of executors: what each does with a node, its events and an interrupt; without a real cluster."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from kdq_core.errors import RecipeError, StageError, TransientError
from kdq_core.recipe.spec import Site
from kdq_core.store.store import Store
from kdq_flows.prefect import on_pool
from kdq_flows.run import on_dask, on_ray
from kdq_flows.run.executors import Here, answer_of, entry_of, executor_of, package
from kdq_flows.run.node import Driving, NodeAnswer
from kdq_flows.run.on_dask import Once, OnDask
from kdq_flows.run.supervisor import StageCancelledError

REQUEST = {"stage": {"title": "distill", "key": "k"}, "needs": {}, "log": "x/distill.log"}
EVENTS = [{"event": "begun", "at": 1.0}, {"event": "note", "at": 2.0, "text": "half"}]
ANSWER = {"key": "k", "by": "there:1:2:3", "state": "ran"}


def silent(_text: str) -> None:
    pass


def telling(_request: dict[str, Any], driving: Driving) -> dict[str, Any]:
    """Stands for `run_node`: tells two events, and progress between them."""
    assert driving.hear is not None
    driving.hear(EVENTS[0])
    driving.hear({"event": "progress", "at": 1.5, "stage": "distill", "done": 1, "total": 2, "note": ""})
    driving.hear(EVENTS[1])
    return ANSWER


def waiting(_request: dict[str, Any], driving: Driving) -> dict[str, Any]:
    """Stands for `run_node`: ends when it is cancelled, or fails."""
    late = not driving.cancelled.wait(20)
    return ANSWER | {"state": "failed", "cancelled": not late, "error": {"type": "StageError", "message": "late"}}


def test_the_executor_of_a_site_is_inline_or_in_threads_with_so_many_workers(site: Site) -> None:
    widths = {}
    for name in ("inline", "threads"):
        with executor_of(site.model_copy(update={"executor": name, "workers": 3}), silent) as executor:
            assert isinstance(executor, Here)
            widths[name] = executor.width
    assert widths == {"inline": 1, "threads": 3}


def test_a_missing_package_is_told_with_its_extra() -> None:
    with pytest.raises(RecipeError) as caught:
        package("no_such_ray", "ray")
    assert str(caught.value) == (
        "the executor 'ray' needs the package 'no_such_ray', which is not installed; install it with "
        "`pip install 'kdq[ray]'`, or choose another executor"
    )


def test_an_unknown_executor_is_told_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDQ_EXECUTOR", "slurm")
    with pytest.raises(RecipeError) as caught:
        Site.from_environment()
    assert str(caught.value) == "KDQ_EXECUTOR is 'slurm'; allowed: 'dask' or 'inline' or 'pool' or 'ray' or 'threads'"


class Giving:
    """An executor whose future is given."""

    width = 1

    def __init__(self, future: Future[dict[str, Any]]) -> None:
        self.future, self.cancelled = future, False

    def warm_up(self, *_: object) -> None: ...

    def submit(self, *_: object) -> Future[dict[str, Any]]:
        return self.future

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None: ...


def test_events_that_come_with_an_answer_are_heard_in_order() -> None:
    done, heard = Future[dict[str, Any]](), list[Any]()
    done.set_result(ANSWER | {"events": EVENTS})
    assert answer_of(Giving(done), REQUEST, heard.append).state == "ran"
    assert heard == EVENTS


def test_a_future_that_was_cancelled_is_a_cancelled_stage() -> None:
    done = Future[dict[str, Any]]()
    done.cancel()
    with pytest.raises(StageCancelledError, match=r"^the stage was cancelled$"):
        answer_of(Giving(done), REQUEST, lambda _event: None)


def test_an_interrupt_cancels_what_the_executor_runs() -> None:
    class Interrupted(Future[dict[str, Any]]):
        def result(self, timeout: float | None = None) -> dict[str, Any]:
            self.set_result({})
            raise KeyboardInterrupt

    executor = Giving(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        answer_of(executor, REQUEST, lambda _event: None)
    assert executor.cancelled


def test_a_result_in_a_store_that_this_process_does_not_see_is_told(site: Site) -> None:
    answer = NodeAnswer(key="k" * 64, by="there:1:2:3", state="ran", store="/srv/store")
    with pytest.raises(StageError) as caught:
        entry_of(answer, Store(site.store))
    assert str(caught.value) == (
        f"the worker 'there' put the result into its store '/srv/store', and this process reads {str(site.store)!r}, "
        "which does not have it; let both use one store: set KDQ_STORE to an address, or KDQ_HOME to a folder that "
        "both see"
    )


@pytest.fixture
def dask(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnDask]:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    executor = OnDask(site, silent)
    yield executor
    executor.close()


def test_dask_brings_each_event_once_and_in_order_with_progress(
    dask: OnDask, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_dask, "run_node", telling)
    heard = list[Any]()
    answer = answer_of(dask, REQUEST, heard.append)
    assert answer.state == "ran"
    assert [event for event in heard if event["event"] != "progress"] == EVENTS
    assert (site.home / "dask").is_dir()


@pytest.mark.parametrize("planned", [{}, {"environment": {"OPENBLAS_NUM_THREADS": "1"}}])
def test_threads_that_dask_chose_for_its_workers_are_not_those_of_a_stage(
    dask: OnDask, planned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nanny sets this variable, which each key holds; a user may set it too, on all machines."""
    seen = list[str | None]()

    def look(_request: object, _driving: object) -> dict[str, Any]:
        seen.append(os.environ.get("OPENBLAS_NUM_THREADS"))
        return ANSWER

    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(on_dask, "run_node", look)
    stage = {**REQUEST["stage"], "parts": {"device": planned}}  # type: ignore[dict-item]
    answer_of(dask, REQUEST | {"stage": stage}, lambda _event: None)
    assert seen == ["1" if planned else None]


def test_dask_ends_a_node_that_is_cancelled(dask: OnDask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_dask, "run_node", waiting)
    threading.Timer(0.3, dask.cancel).start()
    with pytest.raises(StageCancelledError):
        answer_of(dask, REQUEST, lambda _event: None)


def test_dask_that_cannot_be_reached_is_told_before_anything_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:9")
    monkeypatch.setattr(on_dask, "CONNECT_SECONDS", 0.5)
    with pytest.raises(RecipeError, match=r"^the Dask scheduler at DASK_SCHEDULER_ADDRESS='tcp://127.0.0.1:9' cannot"):
        OnDask(site, silent)


def test_a_dask_address_without_a_port_is_told_before_a_client_is_made(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "nonsense")
    monkeypatch.setattr("distributed.Client", None)
    with pytest.raises(RecipeError) as caught:
        OnDask(site, silent)
    assert str(caught.value) == (
        "the Dask scheduler at DASK_SCHEDULER_ADDRESS='nonsense' cannot be reached within 10 s: missing port number in "
        "address 'nonsense'; start it with 'dask scheduler', correct the address, or unset it: KDQ then starts a "
        "cluster that ends with the run"
    )


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_ray_cluster_at_which_nobody_listens_is_told_before_ray_tries(
    site: Site, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": address})  # the executor sets variables of Ray
    monkeypatch.setattr(on_ray, "package", lambda *_: None)  # a call to Ray would raise another error
    with pytest.raises(RecipeError) as caught:
        on_ray.OnRay(site, silent)
    assert str(caught.value) == (
        f"the Ray cluster at RAY_ADDRESS={address!r} cannot be reached: ConnectionRefusedError: [Errno 111] Connection "
        "refused; start it with 'ray start --head', correct the address, or unset it: KDQ then starts a cluster"
    )


def test_events_of_the_scheduler_that_are_late_or_come_twice_are_dropped() -> None:
    heard = list[Any]()
    once, events = Once(heard.append), [{"event": str(n), "n": n} for n in range(4)]
    once.hear(events[0])
    once.hear(events[0])
    once.hear(events[2])  # the second is on its way
    once.hear({"event": "progress"})
    assert heard == [{"event": "0"}, {"event": "progress"}]
    assert once.rest(events) == [{"event": "1"}, {"event": "2"}, {"event": "3"}]
    once.hear(events[1])
    assert len(heard) == 2


def test_an_event_that_the_run_does_not_bear_comes_again_with_the_answer() -> None:
    def refuse(_event: dict[str, Any]) -> None:
        raise StageError("MLflow refuses")

    once = Once(refuse)
    once.hear({"event": "epoch", "n": 0})
    assert once.rest([{"event": "epoch", "n": 0}]) == [{"event": "epoch"}]


def test_a_task_of_ray_yields_each_event_and_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "run_node", telling)
    told = list(on_ray.on_worker(REQUEST))
    assert [one for one in told if one.get("event") != "progress"] == [*EVENTS, {"answer": ANSWER}]


def test_a_task_of_ray_that_is_interrupted_ends_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[Any]()
    monkeypatch.setattr(on_ray, "run_node", lambda request, driving: ended.append(waiting(request, driving)) or ANSWER)
    stream = on_ray.on_worker(REQUEST)
    threading.Timer(0.2, lambda: monkeypatch.setattr(on_ray, "_POLL_SECONDS", -1.0)).start()
    with pytest.raises(ValueError, match="timeout"):  # in the place of the KeyboardInterrupt that Ray raises
        next(stream)
    assert ended[0]["cancelled"] is True


def test_the_folder_of_ray_is_below_the_home_or_a_short_link_leads_there(site: Site, tmp_path: Path) -> None:
    ray = on_ray.OnRay.__new__(on_ray.OnRay)
    ray._home, ray._link, ray._task = tmp_path / ("x" * 60) / "ray", Path(), None
    folder = ray._folder()
    assert len(str(folder)) <= on_ray.LONGEST_FOLDER
    assert folder.resolve() == ray._home.resolve()
    ray.close()
    assert not folder.parent.exists()


class Server:
    """Stands for Prefect's client: one flow run that ends as it was told."""

    def __init__(self, states: list[Any], answer: dict[str, Any] | None) -> None:
        self.states, self.answer, self.set = states, answer, list[Any]()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None: ...

    def create_flow_run_from_deployment(self, _id: UUID, **asked: Any) -> Any:
        self.asked = asked
        return SimpleNamespace(id=uuid4())

    def read_flow_run(self, _run: UUID) -> Any:
        state = self.states[0] if len(self.states) == 1 else self.states.pop(0)
        return SimpleNamespace(state=state, name="x/distill")

    def set_flow_run_state(self, _run: UUID, state: Any) -> None:
        self.set.append(state)


def pooled(server: Server, said: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> on_pool.OnPool:
    monkeypatch.setattr(on_pool, "_client", lambda: server)
    monkeypatch.setattr(on_pool, "_artifact", lambda _client, _run: server.answer)
    monkeypatch.setattr(on_pool, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(on_pool, "ensure_prefect", lambda _site: ("http://there/api", False))
    monkeypatch.setattr(on_pool, "apply_environment", lambda *_: None)
    monkeypatch.setattr(on_pool, "ensure_pool", lambda _pool: None)
    monkeypatch.setattr(on_pool, "deployed", lambda _pool: uuid4())
    return on_pool.OnPool(Site(home=Path("/nowhere"), pool="team", workers=2), said)


def test_a_pool_gives_the_answer_that_its_worker_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.states import Completed, Running

    server, heard = Server([Running(), Completed()], ANSWER | {"events": EVENTS}), list[Any]()
    executor = pooled(server, silent, monkeypatch)
    assert (executor.pool, executor.width) == ("team-nodes", 2)
    assert answer_of(executor, REQUEST, heard.append).state == "ran"
    assert heard == EVENTS
    assert server.asked == {"parameters": {"request": REQUEST | {"site": None}}, "name": "x/distill"}


def test_a_pool_that_loses_a_node_lets_kdq_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.states import Crashed

    executor = pooled(Server([Crashed(message="killed")], None), silent, monkeypatch)
    with pytest.raises(TransientError, match=r"^the worker of the pool 'team-nodes' lost x/distill: Crashed: killed$"):
        answer_of(executor, REQUEST, lambda _event: None)


def test_a_pool_without_a_worker_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.states import Completed, Scheduled

    said, server = list[str](), Server([Scheduled(), Scheduled(), Scheduled(), Completed()], ANSWER)
    executor = pooled(server, said.append, monkeypatch)
    monkeypatch.setattr(on_pool, "UNTAKEN_SECONDS", 0.0)
    answer_of(executor, REQUEST, lambda _event: None)
    assert said == [
        "no worker of the pool 'team-nodes' has taken 'x/distill' for 0 s; 'kdq serve --nodes' starts one, on this "
        "machine or on another with the same Prefect server, store and KDQ_POOL"
    ]


def test_a_pool_cancels_its_flow_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.states import Cancelled, Running

    server = Server([Running()], None)
    executor = pooled(server, silent, monkeypatch)
    done = executor.submit(REQUEST, lambda _event: None)
    while not executor._runs:
        time.sleep(0.01)
    executor.cancel()
    server.states = [Cancelled()]
    assert done.result(5)["cancelled"] is True
    assert [state.type.value for state in server.set] == ["CANCELLING"]
