"""The parent's side of the warm worker: starts it, asks it for a stage's child, ends it.

Only on Linux and only for the CPU: the socket and the signal at the parent's death are Linux's, and a process that has
touched a GPU must not be forked.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.named import named_plugins
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.store import explained
from kdq_core.worker.warm import CAPTURE, EVERY_STAGE
from kdq_flows.run.supervisor import Child, StageCancelledError, child_environment

ENTRY = "kdq_core.worker.main:main"
_POLL_SECONDS = 0.1


def possible(site: Site) -> bool:
    """Whether stages of this site may be forked."""
    return sys.platform == "linux" and site.device == "cpu"


def for_recipe(recipe: Recipe, site: Site, catalog: Catalog, log: Path) -> WarmWorker | None:
    """A worker for the stages of a recipe, or `None` where none is possible."""
    if not possible(site):
        return None
    return WarmWorker(site, log, EVERY_STAGE, [*CAPTURE, *late_imports(recipe, catalog)])


def late_imports(recipe: Recipe, catalog: Catalog) -> list[str]:
    """What the recipe's plug-ins import late, in the order of the stages that do."""
    plugins = [catalog.build(kind, name, options) for kind, name, options, _ in named_plugins(recipe)]
    return list(dict.fromkeys(module for plugin in plugins for module in plugin.late_imports))


class WarmWorker:
    """A process that imports beforehand and forks a stage's child on demand; a `Starter` of the supervisor.

    It gets no thread's death signal, because the thread that starts it may end before the run: it leaves when this
    process's end of the socket is closed, by `close` or by the death of this process.
    """

    def __init__(self, site: Site, log: Path, first: Sequence[str], then: Sequence[str], entry: str = ENTRY) -> None:
        """Start it; it begins to import at once.

        Args:
            site: device and number of threads.
            log: what it prints outside of its children.
            first: modules that every stage needs; none is forked before they are imported.
            then: modules that some need; imported while nothing is asked.
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
        """Its process number."""
        return self._process.pid

    def start(
        self, files: Sequence[IO[bytes]], descriptors: Sequence[int], *, check: Callable[[], None], complete: bool
    ) -> Child | None:
        """A child that runs the stage, or `None` where this worker is gone or cannot be asked.

        Args:
            files: the child's stdin and its log.
            descriptors: the pipe for events, and the lease.
            check: called while waiting; what it raises is passed on, and unless it is
                `StageCancelledError` it ends this worker, which took too long.
            complete: the child begins only after everything was imported: its stage measures time.
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
            ours.close()  # a child that is forked after this finds nobody, and leaves
            raise
        except BaseException:
            ours.close()
            self.close()
            raise
        return child if child.pid else None

    def close(self) -> None:
        """End it, and with it its children; it keeps nothing that could be lost."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class WarmChild:
    """A forked child as the supervisor sees it, by what the status socket says; like `subprocess.Popen`.

    Attributes:
        pid: 0 until the child has said it.
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
        """The return code.

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
        """Take in one message that arrives within `seconds`; whether there was one."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            if not selector.select(seconds):
                return False
        said, _, number = self._status.recv(64).decode().partition(" ")
        if said == "pid":
            self.pid = int(number)
            with suppress(OSError):
                self._status.send(b"go")
        else:  # the worker is gone without a word: its children were killed with it
            self.returncode = int(number) if said == "code" else -9
            self._status.close()
        return True
