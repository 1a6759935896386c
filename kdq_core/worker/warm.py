"""The warm worker: `python -m kdq_core.worker.warm FD ENTRY [MODULE ...]` imports once and forks a child a stage.

The imports of torch and of a stage take seconds. This process only imports: it computes nothing and starts no thread
pool, so a fork of it behaves like a new process. FD is a socket of type SOCK_SEQPACKET. A message on it is
`{"environment": {...}, "after": int}` with descriptors: stdin, log, events, locks, and at last a status socket. On the
status socket the child sends `pid <n>` and waits for an answer; when the child ends, this process sends `code <n>`
(negative for a signal). If the other end is closed, the child gets no answer and exits. The child has its own session,
the message's environment and KDQ_EVENTS_FD, and runs ENTRY (`module:function`). This process ignores SIGTERM.

This process imports the MODULEs in turn, between messages; before it serves a message, it imports the first `after` of
them. When the other end closes the socket, this process exits, and its children die with it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kdq_core.worker.main import die_with_parent

EVERY_STAGE = ("kdq_core.work.run", "torch._dynamo")
"""Modules that every stage needs; the optimizers import the second."""
CAPTURE = ("torch.export._trace", "torch._functorch.aot_autograd")
"""Modules that the first capture of a graph imports."""
_LARGEST = 1 << 20
_MOST = 250

Job = Callable[[], Any]


def main() -> int:
    """Serve until the other end closes the socket; in a forked child, run its job and give its exit code."""
    _, descriptor, entry, *modules = sys.argv
    gc.disable()  # a collection would touch, and so copy, the pages that children share
    job = WarmWorker(socket.socket(fileno=int(descriptor)), entry).serve(modules)
    return 0 if job is None else int(job() or 0)


def load(module: str) -> None:
    """Import a module; if that fails, only print why, so that the stage that needs it reports the error."""
    try:
        importlib.import_module(module)
    except Exception as error:
        print(f"{module!r} is not imported beforehand: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _wait_for_go(status: socket.socket) -> None:
    """Send the child's pid, and exit if nobody answers."""
    with suppress(OSError):
        status.send(f"pid {os.getpid()}".encode())
        if status.recv(8):
            return
    raise SystemExit(3)


class WarmWorker:
    """The server's loop and its children."""

    def __init__(self, control: socket.socket, entry: str) -> None:
        self._control, self._entry, self._pid = control, entry, os.getpid()
        self._status: dict[int, socket.socket] = {}
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a signal to all processes must not end the children's fits
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)

    def serve(self, modules: list[str]) -> Job | None:
        """Import `modules` and serve messages; give `None` at the end, and in a forked child its job."""
        done = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(0 if done < len(modules) else None)}
                if self._woken in ready:
                    self._reap()
                if self._control in ready:
                    payload, descriptors, *_ = socket.recv_fds(self._control, _LARGEST, _MOST, socket.MSG_CMSG_CLOEXEC)
                    if not payload:
                        return None
                    message = json.loads(payload)
                    while done < min(message["after"], len(modules)):
                        load(modules[done])
                        done += 1
                    job = self._fork(message["environment"], descriptors)
                    if job is not None:
                        return job
                elif done < len(modules):
                    load(modules[done])
                    done += 1

    def _fork(self, environment: dict[str, str], descriptors: list[int]) -> Job | None:
        *passed, status = descriptors
        gc.freeze()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # Python warns of threads, but OpenBLAS ends its own before a fork
            pid = os.fork()
        if pid == 0:
            self._become_child(environment, passed, status)
            module, _, name = self._entry.partition(":")
            return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
        for descriptor in passed:
            os.close(descriptor)
        self._status[pid] = socket.socket(fileno=status)
        return None

    def _become_child(self, environment: dict[str, str], passed: list[int], status: int) -> None:
        """Set up signals, session, environment and descriptors as in a process started for this stage alone."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        stdin, log, events, *locks = passed
        os.environ.clear()
        os.environ.update(environment, KDQ_EVENTS_FD=str(events), KDQ_PARENT_PID=str(self._pid))
        for source, target in ((stdin, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        for descriptor in (events, *locks):
            os.set_inheritable(descriptor, True)
        die_with_parent()
        with socket.socket(fileno=status) as teller:
            _wait_for_go(teller)
        for other in (self._control, self._woken, self._waker, *self._status.values()):
            other.close()
        os.close(stdin)
        os.close(log)
        gc.enable()

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            self._woken.recv(4096)
        while self._status:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with self._status.pop(pid) as teller, suppress(OSError):
                teller.send(f"code {os.waitstatus_to_exitcode(status)}".encode())


if __name__ == "__main__":
    sys.exit(main())
