"""The executor `dask`: each node is a task of Dask, on the cluster at DASK_SCHEDULER_ADDRESS or in this process.

A worker tells each event through the scheduler while the node runs, and again with the answer; KDQ takes it once.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from kdq_core.errors import RecipeError, TransientError
from kdq_core.plan.machine import HELD
from kdq_core.recipe.spec import Site
from kdq_flows.run.executors import package
from kdq_flows.run.leases import most_at_once
from kdq_flows.run.node import Driving, Event, Heard, run_node

CONNECT_SECONDS = 10.0
LOOPBACK = "127.0.0.1:0"
_cancelled: dict[str, threading.Event] = defaultdict(threading.Event)
"""In a worker: for each run whose nodes it has seen, whether that run was cancelled."""


class OnDask:
    """Runs nodes on Dask; see `kdq_flows.run.executors.Executor`."""

    def __init__(self, site: Site, _say: Callable[[str], None]) -> None:
        """Connect to the scheduler, if the environment names one.

        Raises:
            RecipeError: the package is missing, or the scheduler does not answer.
        """
        self._folder = str(site.home / "dask")
        os.environ.setdefault("DASK_CONFIG", self._folder)  # otherwise its import writes to the user's home folder
        self._dask = package("distributed", "dask")
        self._site, self._address = site, os.environ.get("DASK_SCHEDULER_ADDRESS") or None
        self._run, self._lock = uuid.uuid4().hex, threading.Lock()
        self._client: Any = None
        self._cluster: Any = None
        self.width = site.workers or most_at_once(site)
        if self._address is not None:
            self._client = self._connected()
            self.width = site.workers or max(1, sum(self._client.nthreads().values()))

    def warm_up(self, *_: object) -> None:
        """Start a cluster in this process, if the environment names none; stages run in child processes anyway."""
        with self._lock:
            if self._client is None:
                self._cluster = self._dask.LocalCluster(
                    n_workers=1, threads_per_worker=self.width, processes=False, dashboard_address=LOOPBACK,
                    worker_dashboard_address=LOOPBACK, local_directory=self._folder, silence_logs=50,
                )  # fmt: skip
                self._client = self._dask.Client(self._cluster, set_as_default=False)

    def submit(self, request: dict[str, Any], heard: Heard) -> Future[dict[str, Any]]:
        """Begin a node as a task that Dask does not retry."""
        self.warm_up()
        name, done, live = f"kdq-{uuid.uuid4().hex}", Future[dict[str, Any]](), Once(heard)
        site = None if self._address else self._site.model_dump(mode="json")
        self._client.subscribe_topic(name, lambda message: live.hear(message[1]["told"]))
        task = self._client.submit(
            on_worker, request | {"site": site}, name, self._run, key=name, pure=False, retries=0
        )

        def ended(task: Any) -> None:
            try:
                answer = task.result()
                done.set_result(answer | {"events": live.rest(answer["events"])})
            except BaseException as error:
                done.set_exception(TransientError(f"Dask lost the stage's task: {type(error).__name__}: {error}"))
            with suppress(Exception):
                self._client.unsubscribe_topic(name)

        task.add_done_callback(ended)
        return done

    def cancel(self) -> None:
        """End the children on all workers; tasks that have not begun end at once when they do."""
        if self._client is not None:
            with suppress(Exception):  # a worker that cannot be reached has ended, or ends with its cluster
                self._client.run(cancel_on_worker, self._run, on_error="ignore")

    def close(self) -> None:
        """Close the connection and the own cluster."""
        for one in (self._client, self._cluster):
            if one is not None:
                with suppress(Exception):
                    one.close()
        self._client = self._cluster = None

    def _connected(self) -> Any:
        from distributed.comm import get_address_host_port

        try:
            if not str(self._address).startswith("ucx://"):
                get_address_host_port(self._address)  # a client with an address without a port takes 20 s to close
            return self._dask.Client(self._address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise RecipeError(
                f"the Dask scheduler at DASK_SCHEDULER_ADDRESS={self._address!r} cannot be reached within "
                f"{CONNECT_SECONDS:g} s: {error}; start it with 'dask scheduler', correct the address, or unset it: "
                "KDQ then starts a cluster that ends with the run"
            ) from None


class Once:
    """Takes numbered events while a node runs, and those that are missing with its answer."""

    def __init__(self, heard: Heard) -> None:
        """Pass events on to `heard`."""
        self._heard, self._next, self._over, self._lock = heard, 0, False, threading.Lock()

    def hear(self, event: Event) -> None:
        """Take an event that the scheduler brought; one that is not the next comes with the answer."""
        with self._lock:
            number = event.get("n")
            if self._over or number not in (None, self._next):
                return
            try:
                self._heard({name: value for name, value in event.items() if name != "n"})
            except Exception:  # the answer brings it again, and its error then ends the run
                self._over = True
                return
            self._next += number is not None

    def rest(self, events: Sequence[Event]) -> list[Event]:
        """The events of an answer that nobody heard yet; later ones of the scheduler are dropped."""
        with self._lock:
            self._over = True
            return [{name: value for name, value in one.items() if name != "n"} for one in events[self._next :]]


def on_worker(request: dict[str, Any], topic: str, run: str) -> dict[str, Any]:
    """Run a node in a worker of Dask."""
    from distributed import get_worker

    worker, kept = get_worker(), list[Event]()
    _drop_dasks_variables(request)

    def tell(event: Event) -> None:
        if event["event"] != "progress":  # that need not come twice
            event = {**event, "n": len(kept)}
            kept.append(event)
        worker.log_event(topic, {"told": event})  # Dask adds a field to it

    answer = run_node(request, Driving(tell, _cancelled[run]))
    return answer | {"events": kept}


def _drop_dasks_variables(request: dict[str, Any]) -> None:
    """Drop what Dask's nanny set for its own threads; KDQ sets the threads of a stage, and keys hold the variable."""
    import dask

    device = request["stage"].get("parts", {}).get("device", {})
    planned = device.get("environment", {})
    for name, value in dask.config.get("distributed.nanny.pre-spawn-environ", {}).items():
        if name in HELD and name not in planned and os.environ.get(name) == str(value):
            del os.environ[name]


def cancel_on_worker(run: str) -> None:
    """Cancel the nodes of a run in this worker, also later ones."""
    _cancelled[run].set()
