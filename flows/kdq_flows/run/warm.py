"""The parent's side of the warm worker: starts it, asks it to fork a stage's child, ends it.

KDQ uses it only on Linux and only for the CPU. Only Linux has the socket type and the signal at the parent's
death, and a process that has used a GPU must not be forked.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import IO

from kdq_core.errors import KdqError
from kdq_core.plan.plan import Plan, asked_of
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.named import named_plugins
from kdq_core.plugins.wiring import wire
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.store import Store, explained
from kdq_core.worker.warm import CAPTURE, EVERY_STAGE
from kdq_flows.run.supervisor import Child, StageCancelledError, child_environment

ENTRY = "kdq_core.worker.main:main"
_POLL_SECONDS = 0.1


def possible(site: Site) -> bool:
    """Whether KDQ can fork the stages of this site."""
    return sys.platform == "linux" and site.device == "cpu"


def for_recipe(recipe: Recipe, site: Site, catalog: Catalog, log: Path) -> WarmWorker | None:
    """A worker for the stages of a recipe; `None` if this site cannot have one."""
    if not possible(site):
        return None
    asked = asked_of(recipe, site, catalog)
    kinds = {"stage"} | {kind for one in wire(asked, catalog) for kind in one.stage.reads(asked, one.ports).plugins}
    captures = CAPTURE if kinds & {"quantizer", "target"} else ()
    return WarmWorker(site, log, EVERY_STAGE, [*captures, *late_imports(recipe, catalog, kinds)])


def late_imports(recipe: Recipe, catalog: Catalog, kinds: Set[str]) -> list[str]:
    """Modules in `late_imports` of the recipe's plug-ins of these kinds, in the order of the stages."""
    plugins = [catalog.build(kind, name, options) for kind, name, options, _ in named_plugins(recipe) if kind in kinds]
    return list(dict.fromkeys(module for plugin in plugins for module in plugin.late_imports))


class WarmWorker:
    """A process that imports libraries beforehand and forks a child for each stage; a `Starter` of the supervisor.

    It exits when this process closes its end of the socket, by `close` or by dying. A death signal would not do: it
    comes from the thread that starts the worker, and that thread may end before the run.
    """

    def __init__(self, site: Site, log: Path, first: Sequence[str], then: Sequence[str], entry: str = ENTRY) -> None:
        """Start the worker; it begins to import at once.

        Args:
            site: gives device and number of threads.
            log: file for what the worker prints outside of its children.
            first: modules that every stage needs; the worker imports them before it forks a child.
            then: modules that some stages need; the worker imports them while it waits for requests.
            entry: `module:function` that a child runs.

        Raises:
            StoreError: the log cannot be written.
        """
        self._site, self._first, self._all = site, len(first), len(first) + len(then)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with explained(log, "write the log"):
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("ab")
        with theirs, output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kdq_core.worker.warm", str(theirs.fileno()), entry, *first, *then],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                env=os.environ | child_environment(site),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process number of the worker."""
        return self._process.pid

    def start(
        self, files: Sequence[IO[bytes]], descriptors: Sequence[int], *, check: Callable[[], None], complete: bool
    ) -> Child | None:
        """Fork a child that runs the stage; `None` if the worker has died or does not take the request.

        Args:
            files: the child's stdin and its log.
            descriptors: the pipe for events, and the lock files of the devices and of the key.
            check: called while KDQ waits for the child. `start` passes its exception on; any but `StageCancelledError`
                also ends this worker, because it took too long.
            complete: fork only after all imports are done, because the stage measures time.
        """
        if self._process.poll() is not None:
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        message = {
            "environment": os.environ | child_environment(self._site),
            "after": self._all if complete else self._first,
        }
        try:
            with theirs:
                passed = [*(file.fileno() for file in files), *descriptors, theirs.fileno()]
                socket.send_fds(self._control, [json.dumps(message).encode()], passed)
            child = WarmChild(ours)
            while child.pid == 0 and child.poll() is None:
                check()
                child.hear(_POLL_SECONDS)
        except OSError:
            ours.close()
            return None
        except StageCancelledError:
            ours.close()  # a child that is forked after this finds the socket closed, and exits
            raise
        except BaseException:
            ours.close()
            self.close()
            raise
        return child if child.pid else None

    def close(self) -> None:
        """Kill the worker and its children; it holds no data that could be lost."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class WarmChild:
    """A forked child with the interface of `subprocess.Popen`; its state comes through the status socket.

    Attributes:
        pid: 0 until the child has sent it.
        returncode: negative for a signal; `None` while the child runs.
    """

    def __init__(self, status: socket.socket) -> None:
        self._status = status
        self.pid = 0
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The return code, without waiting."""
        while self.returncode is None and self.hear(0):
            pass
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the return code.

        Raises:
            subprocess.TimeoutExpired: the child still runs after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(ENTRY, timeout or 0)
            self.hear(left)
        assert self.returncode is not None
        return self.returncode

    def hear(self, seconds: float | None) -> bool:
        """Read one message that arrives within `seconds`; whether there was one."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            if not selector.select(seconds):
                return False
        try:
            said, _, number = self._status.recv(64).decode().partition(" ")
        except ConnectionResetError:  # the child was killed before it read the answer; its code, if any, comes next
            return True
        if said == "pid":
            self.pid = int(number)
            with suppress(OSError):
                self._status.send(b"go")
        else:  # without a code the worker died, and its children were killed with it
            self.returncode = int(number) if said == "code" else -9
            self._status.close()
        return True


def work_ahead(plan: Plan, store: Store) -> bool:
    """Whether a heavy stage is missing from the store, or its entry cannot be read."""
    digests: dict[str, str] = {}
    for node in plan.nodes:
        if node.heavy:
            try:
                digest = store.peek(node.key(digests))
            except KdqError:
                return True
            if digest is None:
                return True
            digests[node.name] = digest
    return False
