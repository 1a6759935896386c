"""Runs a heavy stage in a child process, with a time limit.

Native code ignores Python's time limits, may crash, and keeps a device's memory until its process ends. So KDQ runs a
heavy stage as a child in a session of its own. However the stage ends, KDQ then ends the whole process group of the
child. It does so too at the time limit and on cancel.

The child reads one JSON request from stdin, and writes events as JSON lines to the descriptor in KDQ_EVENTS_FD.
Everything that it prints goes to the log. A starter, the warm worker of `kdq_flows.run.warm`, forks the child; without
a starter KDQ starts a new process.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from kdq_core.errors import ErrorRecord, KdqError, StageError, TransientError, UnforeseenError
from kdq_core.recipe.gpus import CPU, visible_gpu
from kdq_core.recipe.spec import Site
from kdq_core.store.store import explained

TERMINATE_SECONDS = 3.5
"""From SIGTERM, at which a fit keeps its state, to SIGKILL. A run leaves within `signals.LEAVE_SECONDS` in all."""
EXIT_SECONDS = 10.0
"""Seconds within which a child must exit after its last event."""
_POLL_SECONDS = 0.1
_LOG_LINES = 8
WORKER = (sys.executable, "-P", "-m", "kdq_core.worker.main")
"""`-P` keeps the working directory out of the module search path, as for the `kdq` command."""

Event = dict[str, Any]


class StageCancelledError(StageError):
    """The run was cancelled, so KDQ ended the stage."""


def refuse_cancelled(cancelled: threading.Event) -> None:
    """Raise if the run was cancelled before a stage of it began."""
    if cancelled.is_set():
        raise StageCancelledError("the stage was cancelled before it began")


class Child(Protocol):
    """The part of `subprocess.Popen` that the supervisor uses; the child leads its own session."""

    @property
    def pid(self) -> int:
        """Number of the process and of its process group."""

    @property
    def returncode(self) -> int | None:
        """Negative for a signal; `None` while it runs, or before the first `poll` or `wait`."""

    def poll(self) -> int | None:
        """The return code, without waiting."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the return code; raises `subprocess.TimeoutExpired` after `timeout` seconds."""


class Starter(Protocol):
    """Starts a stage's child faster than a new process does."""

    def start(
        self, files: Sequence[IO[bytes]], descriptors: Sequence[int], *, check: Callable[[], None], complete: bool
    ) -> Child | None:
        """Start a child; `None` if that is not possible. See `kdq_flows.run.warm.WarmWorker.start`."""


def run_child(
    request: dict[str, Any],
    *,
    site: Site,
    descriptors: Sequence[int],
    timeout_seconds: float,
    on_event: Callable[[Event], None],
    log: Path,
    stall_seconds: float | None = None,
    cancelled: threading.Event | None = None,
    argv: Sequence[str] = WORKER,
    starter: Starter | None = None,
    measures: bool = False,
) -> Event:
    """Run one stage in a child process and return its last event, `{"event": "result", ...}`.

    Args:
        request: what the child shall do; it reads this from stdin as JSON.
        site: gives devices and number of threads.
        descriptors: open lock files of the devices and of the key; the child inherits them.
        timeout_seconds: limit of this try.
        on_event: called with every other event, in order, in this thread.
        log: KDQ appends what the child prints to this file.
        stall_seconds: limit of the time without an event.
        cancelled: if it is set, KDQ ends the child.
        argv: the command of a new process.
        starter: forks the child if it can; otherwise KDQ starts a new process.
        measures: the stage measures time, so the starter must do nothing while it runs.

    Raises:
        KdqError: the error that the child reported.
        StageError: the stage reached its time limit, or was cancelled.
        TransientError: the child died without a result, or sent no event for too long.
        StoreError: the log cannot be written.
    """
    with explained(log, "write the log"):
        log.parent.mkdir(parents=True, exist_ok=True)
    before = log.stat().st_size if log.exists() else 0
    check = _Checker(timeout_seconds, stall_seconds, log, cancelled)
    reader, writer = os.pipe()
    with _Events(reader) as events:
        try:
            with _request_file(log.parent, request) as stdin, _log_file(log) as output:
                files, passed = (stdin, output), (writer, *descriptors)
                warm = starter.start(files, passed, check=check, complete=measures) if starter else None
                child = warm or _start(argv, site, files, passed)
        finally:
            os.close(writer)
        try:
            last = _listen(child, events, check.hearing(on_event), check)
        finally:
            end_group(child)
    if last is None:
        raise TransientError(_death(child.wait(), log, before))
    if last["event"] == "error":
        raise _reported(last["error"], log)
    return last


def _reported(record: dict[str, Any], log: Path) -> KdqError:
    """The error that a child reported."""
    error = ErrorRecord(**record).to_error()
    unforeseen = isinstance(error, UnforeseenError)
    return UnforeseenError(f"{error}; the traceback is in {str(log)!r}") if unforeseen else error


def end_group(child: Child) -> None:
    """End the child with SIGTERM; after its end, or after some seconds, its whole process group with SIGKILL.

    The child's own processes get no SIGTERM: a fit still needs those that load data while it finishes its step.
    """
    if child.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(TERMINATE_SECONDS)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _start(
    argv: Sequence[str], site: Site, files: tuple[IO[bytes], IO[bytes]], descriptors: Sequence[int]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(argv),
        stdin=files[0],
        stdout=files[1],
        stderr=subprocess.STDOUT,
        pass_fds=tuple(descriptors),
        env=os.environ | child_environment(site) | {"KDQ_EVENTS_FD": str(descriptors[0])},
        start_new_session=True,
    )


def _request_file(folder: Path, request: dict[str, Any]) -> IO[bytes]:
    """The request as a file that is open for reading. With a pipe, a child that does not read would block KDQ."""
    with explained(folder, "write to"), ExitStack() as undo:
        file = undo.enter_context(tempfile.TemporaryFile(dir=folder))
        file.write(json.dumps(request).encode())
        file.seek(0)
        undo.pop_all()
        return file


def _log_file(log: Path) -> IO[bytes]:
    with explained(log, "write the log"):
        return log.open("ab")


def child_environment(site: Site) -> dict[str, str]:
    """Variables that must be set before torch is imported. The child sees its own GPUs only, from `cuda:0` on.

    KDQ_PARENT_PID lets the child notice a parent that died before the child could ask for a signal at its death.
    """
    threads = str(site.threads)
    gpus = [visible_gpu(device) for device in site.all_devices if device != CPU]
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the driver's numbering of GPUs
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **waiting_briefly(),
        # Without this, matplotlib, which torchmetrics imports, writes to the user's home folder.
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(site.home / "matplotlib")),
        "PYTHONHASHSEED": "0",
        "ORT_DISABLE_TELEMETRY": "1",  # without this, its import writes to the user's home folder
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "KDQ_PARENT_PID": str(os.getpid()),
    }


def waiting_briefly() -> dict[str, str]:
    """Let waiting threads release their core after some microseconds, unless the user sets how they wait.

    By default GNU OpenMP keeps the core for milliseconds. If another process is busy, a training step then takes ten
    times as long.
    """
    said = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    return {} if said else {"GOMP_SPINCOUNT": "5000"}


class _Events:
    """Reads complete JSON lines from a pipe; never blocks longer than the caller allows."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        self._open = True
        os.set_blocking(descriptor, False)
        self._selector.register(descriptor, selectors.EVENT_READ)

    def __enter__(self) -> _Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        os.close(self._descriptor)

    def read(self, seconds: float) -> list[Event]:
        """The events that arrive within `seconds`; returns as soon as there are any."""
        if not self._open:
            time.sleep(min(seconds, 0.02))
            return []
        if not self._selector.select(seconds):
            return []
        chunk = os.read(self._descriptor, 1 << 20)
        if not chunk:
            self._open = False
            self._selector.unregister(self._descriptor)
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]


def _listen(
    child: Child, events: _Events, on_event: Callable[[Event], None], check: Callable[[], None]
) -> Event | None:
    """Pass events on until the child exits; gives its result or error event, or `None` if it sent neither."""
    last: Event | None = None
    leave = float("inf")
    while True:
        gone = child.poll() is not None
        for event in events.read(0 if gone else _POLL_SECONDS):
            if event["event"] in ("result", "error"):
                last = event
                leave = time.monotonic() + EXIT_SECONDS
            else:
                on_event(event)
        if gone:
            return last
        if last is None:
            check()
        elif time.monotonic() >= leave:
            return last


class _Checker:
    """Raises once the stage is cancelled, has run for too long, or has shown no progress for too long."""

    def __init__(self, limit: float, stall: float | None, log: Path, cancelled: threading.Event | None) -> None:
        self._limit, self._stall, self._log, self._cancelled = limit, stall, log, cancelled
        self._began = self._heard = time.monotonic()

    def hearing(self, on_event: Callable[[Event], None]) -> Callable[[Event], None]:
        """`on_event`, which also counts as a sign of progress."""

        def heard(event: Event) -> None:
            on_event(event)
            self._heard = time.monotonic()

        return heard

    def __call__(self) -> None:
        if self._cancelled is not None and self._cancelled.is_set():
            raise StageCancelledError("the stage was cancelled and its worker ended")
        now, log = time.monotonic(), f"its log is {str(self._log)!r}"
        if now >= self._began + self._limit:
            raise StageError(
                f"the stage ran longer than its limit of {self._limit:g} s and was ended; raise "
                f"'retry.stage_timeout_seconds' in the recipe, or give the stage less to do; {log}"
            )
        if self._stall is not None and now >= self._heard + self._stall:
            raise TransientError(
                f"the stage stalled: it showed no progress for {self._stall:g} s ('retry.stall_seconds') and was "
                f"ended; raise that limit if such a pause is usual; {log}"
            )


def _death(status: int, log: Path, before: int) -> str:
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with code {status}"
    hint = "; the machine may be out of memory" if status == -signal.SIGKILL else ""
    lines = log.read_bytes()[before:].decode(errors="replace").splitlines()
    tail = [line.strip() for line in lines if line.strip() and not line.startswith((" ", "\t", "Traceback"))]
    said = f"; its last words: {' | '.join(tail[-_LOG_LINES:])!r}" if tail else ""
    return f"the stage's worker {how} before it gave a result{hint}{said}; its log is {str(log)!r}"
