"""Locks on files, among the processes and threads of one machine.

The kernel gives a lock back when the last process that has its file open is gone, also after `kill -9`. A file of
its own is locked, never what it guards; its content is its holder's to write.
"""

from __future__ import annotations

import fcntl
import os
import time
from io import FileIO
from pathlib import Path

from kdq_core.errors import LockedError

_POLL_SECONDS = 0.05


def held(path: Path, *, seconds: float | None = None) -> FileIO:
    """Wait for the lock of `path` and take it.

    Args:
        path: the lock file; it is made, with its folder, where there is none.
        seconds: how long to wait; none waits for ever.

    Returns:
        The open file. Closing it gives the lock back; a child that was given its descriptor holds the lock too.

    Raises:
        LockedError: another holder did not give it back in time.
        OSError: the file cannot be written.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    while (file := try_held(path)) is None:
        if deadline is not None and time.monotonic() >= deadline:
            raise LockedError(
                f"the lock file {str(path)!r} was not free within {seconds:g} s: another process holds it; wait for "
                "that process or end it, then try again"
            )
        time.sleep(_POLL_SECONDS)
    return file


def try_held(path: Path) -> FileIO | None:
    """Take the lock of `path` as `held` does, or give `None` at once if another holds it.

    A holder may remove the file before giving the lock back. Whoever opened it before that has locked a file without a
    name, which keeps nobody out; so the lock counts only if `path` still names the locked file.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _names(path, file):
                return file
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        file.close()


def _names(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
