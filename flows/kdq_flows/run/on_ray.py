"""The executor `ray`: each node is a task of Ray, on the cluster at RAY_ADDRESS or on one that ends with the run.

A task is a stream: it yields each event as it happens, and its answer at the end. Ray retries nothing.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdq_core.errors import RecipeError, TransientError
from kdq_core.recipe.spec import Site
from kdq_flows.run.executors import package
from kdq_flows.run.leases import most_at_once
from kdq_flows.run.node import Driving, Event, Heard, run_node
from kdq_flows.run.signals import SIGNALS
from kdq_flows.run.supervisor import TERMINATE_SECONDS

LONGEST_FOLDER = 40
"""Characters. Ray puts a socket 65 characters below its folder, and the kernel takes 107."""
CONNECT_SECONDS = 10.0
_POLL_SECONDS = 0.1
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # KDQ's own leases choose the GPU
}


class OnRay:
    """Runs nodes on Ray; see `kdq_flows.run.executors.Executor`."""

    def __init__(self, site: Site, _say: Callable[[str], None]) -> None:
        """Connect to the cluster, if the environment names one.

        Raises:
            RecipeError: the package is missing, or the cluster does not answer.
        """
        home = site.home / "ray"
        os.environ.update(_ENVIRONMENT)
        self._address = os.environ.get("RAY_ADDRESS") or None
        if self._address is None and "RAY_AUTH_MODE" not in os.environ:
            # Otherwise Ray writes a token to the user's home folder; it reads this when it is imported.
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=uuid.uuid4().hex)
        # Otherwise Ray writes to the user's home folder.
        os.environ.setdefault("RAY_USAGE_STATS_CONFIG_PATH", str(home / "usage.json"))
        self._ray = package("ray", "ray")
        self._site, self._home = site, home
        self._lock, self._link = threading.Lock(), Path()
        self._streams = set[Any]()
        self._task: Any = None
        self._cancelled = False
        self.width = site.workers or most_at_once(site)
        if self._address is not None:
            self._start(address=self._address, runtime_env={"env_vars": _ENVIRONMENT})
            self.width = site.workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def warm_up(self, *_: object) -> None:
        """Start a cluster on this machine, if the environment names none."""
        with self._lock:
            if self._task is None:
                self._start(
                    address="local", num_cpus=self.width, num_gpus=0, include_dashboard=False,
                    object_store_memory=100 * 2**20, _temp_dir=str(self._folder()), _node_ip_address="127.0.0.1",
                    _system_config={"worker_niceness": 0},
                )  # fmt: skip

    def submit(self, request: dict[str, Any], heard: Heard) -> Future[dict[str, Any]]:
        """Begin a node as a task, and a thread that listens to it."""
        self.warm_up()
        done = Future[dict[str, Any]]()
        site = None if self._address else self._site.model_dump(mode="json")
        stream = self._task.remote(request | {"site": site})
        self._streams.add(stream)
        if self._cancelled:
            self._end(stream)
        listening = threading.Thread(target=self._listen, args=(stream, heard, done), name="kdq-ray", daemon=True)
        listening.start()
        return done

    def cancel(self) -> None:
        """End the children of the tasks that run; those that wait do not begin."""
        self._cancelled = True
        for stream in list(self._streams):
            self._end(stream)

    def close(self) -> None:
        """Leave the cluster; the own one ends."""
        if self._task is not None:
            self._ray.shutdown()
            self._task = None
        if self._link != Path():
            shutil.rmtree(self._link, ignore_errors=True)

    def _start(self, **how: Any) -> None:
        """Connect to a cluster or start one.

        Raises:
            RecipeError: it does not answer or start.
        """
        if self._address:
            self._check_reachable(self._address)
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            self._ray.init(configure_logging=False, log_to_driver=False, namespace="kdq", **how)
        except Exception as error:
            if self._address:
                raise self._unreachable(error) from error
            raise RecipeError(
                f"Ray does not start: {type(error).__name__}: {error}; its logs are in {str(self._home)!r}; choose "
                "another executor"
            ) from error
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray sets its own
        remote = self._ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")
        self._task = remote(on_worker)

    def _check_reachable(self, address: str) -> None:
        """Refuse an address HOST:PORT at which nobody listens; Ray would try for minutes.

        Raises:
            RecipeError: nobody does.
        """
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if not port.isdecimal():
            return  # such as 'auto', which Ray looks up
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> RecipeError:
        return RecipeError(
            f"the Ray cluster at RAY_ADDRESS={self._address!r} cannot be reached: {type(error).__name__}: {error}; "
            "start it with 'ray start --head', correct the address, or unset it: KDQ then starts a cluster"
        )

    def _folder(self) -> Path:
        """The folder of the own cluster: below the home, or a short link that leads there."""
        self._home.mkdir(parents=True, exist_ok=True)
        if len(str(self._home)) <= LONGEST_FOLDER:
            return self._home
        self._link = Path(tempfile.mkdtemp(prefix="kdq-ray-"))
        (self._link / "r").symlink_to(self._home, target_is_directory=True)
        return self._link / "r"

    def _end(self, stream: Any) -> None:
        with suppress(Exception):  # it has ended
            self._ray.cancel(stream, force=False, recursive=False)

    def _listen(self, stream: Any, heard: Heard, done: Future[dict[str, Any]]) -> None:
        failed: list[Event] = []
        try:
            for part in stream:
                told = self._ray.get(part)
                if "answer" in told:
                    done.set_result(told["answer"] | {"events": failed})
                    return
                if failed or not _heard(heard, told):
                    failed.append(told)  # the answer brings it again, and its error then ends the run
            raise RuntimeError("it gave no answer")
        except self._ray.exceptions.TaskCancelledError:
            done.cancel()
            done.set_running_or_notify_cancel()
        except BaseException as error:
            done.set_exception(TransientError(f"Ray lost the stage's task: {type(error).__name__}: {error}"))
        finally:
            self._streams.discard(stream)


def _heard(heard: Heard, event: Event) -> bool:
    try:
        heard(event)
    except Exception:
        return False
    return True


def on_worker(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run a node in a worker of Ray; yields its events, and at last its answer.

    Ray interrupts the main thread of a task that is cancelled, so the node runs in another one.
    """
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    cancelled = threading.Event()

    def work() -> None:
        answer = run_node(request, Driving(told.put, cancelled))
        told.put({"answer": answer})

    node = threading.Thread(target=work, name="kdq-node")
    node.start()
    try:
        while True:
            try:
                event = told.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            yield event
            if "answer" in event:
                return
    except BaseException:
        cancelled.set()
        node.join(TERMINATE_SECONDS + 1)
        raise
