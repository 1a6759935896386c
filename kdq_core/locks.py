"""Locks on files, among the processes and threads of one machine.

The kernel releases a lock when the last process that has its file open is gone, also after `kill -9`. A lock has a file
of its own, apart from the file or folder it guards; the holder may write into the lock file.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from kdq_core.errors import LockedError

_POLL_SECONDS = 0.05


def held(
    path: Path, *, seconds: float | None = None, shared: bool = False, check: Callable[[], None] = lambda: None
) -> FileIO:
    """Wait for the lock of `path` and take it.

    Args:
        path: the lock file; `held` creates it and its folder if they are missing.
        seconds: how long to wait; `None` waits for ever.
        shared: several may hold the lock together that ask for it so.
        check: called while KDQ waits; what it raises ends the waiting.

    Returns:
        The open file. Closing it releases the lock; a child that inherits its descriptor holds the lock too.

    Raises:
        LockedError: another holder did not release it in time.
        OSError: the file cannot be written.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    while (file := try_held(path, shared=shared)) is None:
        if deadline is not None and time.monotonic() >= deadline:
            raise LockedError(
                f"the lock file {str(path)!r} was not free within {seconds:g} s: another process holds it; wait for "
                "that process or end it, then try again"
            )
        check()
        time.sleep(_POLL_SECONDS)
    return file


def try_held(path: Path, *, shared: bool = False) -> FileIO | None:
    """Take the lock of `path` as `held` does, or return `None` at once if another process or thread holds it.

    A holder may remove the file before it releases the lock. A process that opened the file before that would then lock
    a file without a name, which keeps nobody out. So the lock counts only if `path` still names the locked file.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = _opened(path)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _names(path, file):
                return file
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        file.close()


def _opened(path: Path) -> FileIO:
    """The file, open for writing. Linux refuses to create what is there if another user's file lies in a shared folder.

    That is the sysctl `fs.protected_regular`.
    """
    try:
        return path.open("r+b", buffering=0)
    except FileNotFoundError:
        return path.open("a+b", buffering=0)


def _names(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
