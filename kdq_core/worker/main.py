"""The stage worker: `python -m kdq_core.worker.main`, one heavy stage in a process of its own.

It reads a `StageRequest` as JSON from stdin and writes events as JSON lines to the file descriptor KDQ_EVENTS_FD;
the last one is `result` or `error`. On Linux, the kernel kills it when the process that started it dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

from kdq_core.errors import ErrorRecord, KdqError, StageError, StoreError, TransientError, UnforeseenError
from kdq_core.failures import failure_of
from kdq_core.store.store import FULL, MAKE_ROOM, disk_is_full
from kdq_core.worker.ranks import together

PR_SET_PDEATHSIG = 1
PYTHONS = os.path.dirname(os.__file__) + os.sep


def die_with_parent() -> None:
    """Ask the kernel (Linux) for SIGKILL when the parent dies, and leave at once if it is already gone."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.get("KDQ_PARENT_PID")
    if parent and os.getppid() != int(parent):
        raise SystemExit(3)


def main() -> int:
    """Serve one request; give exit code 0 for a result and 1 for an error."""
    die_with_parent()
    with os.fdopen(int(os.environ["KDQ_EVENTS_FD"]), "w", buffering=1) as events:

        def emit(event: dict[str, Any]) -> None:
            if event["event"] == "epoch":
                print(epoch_line(event["record"]), flush=True)  # stdout is the stage's log
            with contextlib.suppress(BrokenPipeError):
                events.write(json.dumps(event) + "\n")

        try:
            from kdq_core.work.run import StageRequest, check_ahead, run_share, run_stage

            text = sys.stdin.read()
            request = StageRequest.model_validate_json(text)
            if request.only_checks:
                check_ahead(request, emit)
                emit({"event": "result"})
                return 0
            with together(text, len(request.site.all_devices), request.site.home, emit) as beside:
                if beside is not None:
                    run_share(request, beside)
                    return 0
                entry = run_stage(request, emit)
        except BaseException as error:
            traceback.print_exc()
            emit({"event": "error", "error": ErrorRecord.of(named(error)).model_dump()})
            return 1
        emit({"event": "result", "key": entry.manifest.key, "digest": entry.digest})
        return 0


def epoch_line(record: dict[str, Any]) -> str:
    """One point of the curves in words, with the time: `2026-01-02 03:04:05 epoch 3: train/loss 0.123`."""
    values = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                       for name, value in record["values"].items())  # fmt: skip
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} epoch {record['epoch']}: {values}"


def named(error: BaseException) -> KdqError:
    """Turn `error` into one of KDQ's own: a passing failure is transient, a full disk a `StoreError`.

    An error of KDQ's that wraps a passing failure is transient too, unless the request or a plug-in is wrong.
    """
    text = f"{type(error).__name__}: {error}"
    passing = failure_of(error)
    if isinstance(error, KdqError):
        return TransientError(str(error)) if passing and type(error) in (StageError, StoreError) else error
    if disk_is_full(error):
        return StoreError(f"{FULL}; {MAKE_ROOM}")
    if passing:
        return TransientError(f"{passing.fact}: {text}; {passing.remedy}")
    return UnforeseenError("; ".join((text + _place(error), *getattr(error, "__notes__", ()))))


def _place(error: BaseException) -> str:
    """` (in file:line)`: the innermost frame of `error` outside torch and the standard library; else empty."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = frame.filename
        pythons = file.startswith("<") or (file.startswith(PYTHONS) and "/site-packages/" not in file)
        if not pythons and "/site-packages/torch/" not in file:
            return f" (in {file}:{frame.lineno})"
    return ""


if __name__ == "__main__":
    sys.exit(main())
