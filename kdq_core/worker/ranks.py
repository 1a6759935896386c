"""Several processes compute one stage, each on a device of its own, and share the batches of its fits.

The worker of the stage is the first of them: it starts the others with its own request, and alone keeps what the stage
gives. They meet by a file. The others die with the first; if one of them fails, the first reports its error and exits.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdq_core.errors import ErrorRecord, KdqError, TransientError
from kdq_core.store import drafts

RANK, MEETING = "KDQ_RANK", "KDQ_RANKS_MEET"
"""Variables of the other processes: their number, from 1, and the file by which all meet."""
_WAIT = datetime.timedelta(days=1)
"""How long one waits for the others; the stage's own limits end it sooner."""
_END_SECONDS = 30.0
_REPORT_SECONDS = 3.0

Emit = Callable[[dict[str, Any]], None]


def rank() -> int:
    """The number of this process; 0 for the one that keeps the result."""
    return int(os.environ.get(RANK, 0))


@contextlib.contextmanager
def together(request: str, count: int, home: Path, emit: Emit) -> Iterator[Path | None]:
    """Compute with `count` processes; gives a folder for what a process other than the first writes.

    Args:
        request: the request to the stage, as JSON.
        count: number of processes.
        home: of the site.
        emit: gets the error of another process; then this one exits.
    """
    if count == 1:
        yield None
        return
    if rank():
        with tempfile.TemporaryDirectory(dir=Path(os.environ[MEETING]).parent) as folder:
            _join(Path(os.environ[MEETING]), count)
            yield Path(folder)
            _leave()
        return
    with drafts.place(home / "scratch", "ranks") as folder:
        folder.mkdir()
        meeting = folder / "meeting"
        others = _Others(request, count, meeting, emit)
        try:
            _join(meeting, count)
            yield None
            _leave()
            others.await_end()
        except KdqError:
            raise
        except Exception:
            others.report_first()
            raise
        finally:
            others.kill()


def _join(meeting: Path, count: int) -> None:
    """Join the group: NCCL for GPUs, gloo for the CPU."""
    import torch

    os.environ |= {"RANK": str(rank()), "LOCAL_RANK": str(rank()), "WORLD_SIZE": str(count)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    on_gpu = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if on_gpu:
        torch.cuda.set_device(rank())
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", f"file://{meeting}", rank=rank(), world_size=count, timeout=_WAIT
    )


def _leave() -> None:
    import torch

    torch.distributed.destroy_process_group()


class _Others:
    """The processes beside the first, each with a thread that hears its error."""

    def __init__(self, request: str, count: int, meeting: Path, emit: Emit) -> None:
        self._emit, self._ending, self._lock = emit, False, threading.Lock()
        self._processes: list[subprocess.Popen[str]] = []
        for number in range(1, count):
            self._start(number, request, meeting)

    def _start(self, number: int, request: str, meeting: Path) -> None:
        reader, writer = os.pipe()
        named = {RANK: str(number), MEETING: str(meeting), "KDQ_EVENTS_FD": str(writer)}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kdq_core.worker.main"],
            stdin=subprocess.PIPE,
            pass_fds=(writer,),
            env=os.environ | named | {"KDQ_PARENT_PID": str(os.getpid())},
            text=True,
        )
        os.close(writer)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(request)
        self._processes.append(process)
        threading.Thread(target=self._hear, args=(number, process, reader), daemon=True).start()

    def _hear(self, number: int, process: subprocess.Popen[str], reader: int) -> None:
        with os.fdopen(reader) as events:
            for line in events:
                event = json.loads(line)
                if event["event"] == "error":
                    self._report(event["error"])
        code = process.wait()
        if code:
            died = TransientError(f"process {number} of those that share the stage's batches exited with code {code}")
            self._report(ErrorRecord.of(died).model_dump())

    def _report(self, error: dict[str, Any]) -> None:
        """Send the error of another process, and end this one, which may wait for that process for ever."""
        with self._lock:
            if self._ending:
                return
            self._emit({"event": "error", "error": error})
            os._exit(1)

    def await_end(self) -> None:
        """Wait until the others have done their part."""
        until = time.monotonic() + _END_SECONDS
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))

    def report_first(self) -> None:
        """Give the threads time to report another process, whose end may be what this one failed of."""
        time.sleep(_REPORT_SECONDS)

    def kill(self) -> None:
        """End the others."""
        with self._lock:
            self._ending = True
        for process in self._processes:
            process.kill()
            process.wait()
