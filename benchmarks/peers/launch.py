"""Run a process within a time limit, and measure what it and its children used."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PAUSE = 0.1
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
_running: set[int] = set()
_ending = threading.Event()
KIB = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: exit status; negative: killed by that signal.
        late: the time limit ended it.
        seconds: wall-clock time.
        cpu: CPU seconds of the process and all children that it waited for.
        peak: bytes of memory of the largest of them.
        tail: the end of what it wrote.
    """

    code: int
    late: bool
    seconds: float
    cpu: float
    peak: int
    tail: str

    @property
    def failure(self) -> str:
        """What went wrong, in one line; empty if nothing did."""
        if self.late:
            return f"took longer than {self.seconds:.0f} s"
        if self.code == 0:
            return ""
        why = signal.Signals(-self.code).name if self.code < 0 else f"exit status {self.code}"
        return f"{why}: {self.tail}"


def launch(command: Sequence[str], log: Path, limit: float, environment: Mapping[str, str], folder: Path) -> Ended:
    """Run a command in a session of its own; its output goes to `log`.

    Keep the calling process small: Linux counts its memory as a peak of the child, which begins as its copy.

    Raises:
        KeyboardInterrupt: `end_all` was called.
    """
    if _ending.is_set():
        raise KeyboardInterrupt
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as written:
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdout=written, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
        )
        _running.add(process.pid)
        try:
            late, status, used = _wait(process.pid, began + limit)
        except BaseException:
            _end(process.pid)
            raise
        finally:
            _running.discard(process.pid)
    if _ending.is_set():
        raise KeyboardInterrupt
    process.returncode = code = os.waitstatus_to_exitcode(status)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    cpu, tail = used.ru_utime + used.ru_stime, lines[-1][:500] if lines else ""
    return Ended(code, late, time.monotonic() - began, cpu, used.ru_maxrss * KIB, tail)


def _wait(process: int, until: float) -> tuple[bool, int, resource.struct_rusage]:
    late = False
    while True:
        ended, status, used = os.wait4(process, os.WNOHANG)
        if ended:
            return late, status, used
        if time.monotonic() > until + late * GRACE:
            _end(process, signal.SIGKILL if late else signal.SIGTERM)
            late = True
        time.sleep(PAUSE)


def end_all() -> None:
    """End all processes that run now; `launch` raises KeyboardInterrupt in their threads, and starts no other."""
    _ending.set()
    for process in list(_running):
        _end(process)


def _end(process: int, how: signal.Signals = signal.SIGTERM) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, how)
