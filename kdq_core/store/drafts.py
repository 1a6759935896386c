"""Folders that KDQ is writing or removing, each with a lock that ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"
"""Ending of the lock file beside a folder; the process that owns the folder holds the lock."""
NEW = ".new"
"""Ending of the lock file until it is locked."""


@contextlib.contextmanager
def place(drafts: Path, key: str) -> Iterator[Path]:
    """Give a new path below `drafts` for this process alone; at the end, remove what is there.

    Raises:
        OSError: the folder cannot be written.
    """
    drafts.mkdir(parents=True, exist_ok=True)
    folder = drafts / f"{key}.{uuid.uuid4().hex}"
    lock = folder.with_name(folder.name + LOCK)
    held = _held(lock)
    try:
        yield folder
    finally:
        _remove(folder, lock)
        os.close(held)


def sweep(drafts: Path) -> list[str]:
    """Remove folders that dead processes left, and give their names. A folder without a lock file is not KDQ's."""
    swept = []
    for lock in sorted(drafts.glob(f"*{LOCK}")):
        with contextlib.suppress(OSError), lock.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock.with_suffix(""), lock)
            swept.append(lock.stem)
    for unnamed in drafts.glob(f"*{NEW}"):
        with contextlib.suppress(OSError), unnamed.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.unlink()
    return swept


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path, lock: Path) -> None:
    """Remove `folder`, then its lock. If the folder cannot go now, the lock stays, and a later sweep removes both."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        if os.path.lexists(folder):
            folder.unlink()
        lock.unlink()


def _held(lock: Path) -> int:
    """Make the file `lock`, and give its descriptor; it is locked before it has that name, so no sweep removes it.

    A sweep may remove the file before it is locked; then this makes it again.
    """
    unnamed = lock.with_suffix(NEW)
    while True:
        descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            unnamed.rename(lock)
        except FileNotFoundError:
            os.close(descriptor)
        except BaseException:
            os.close(descriptor)
            unnamed.unlink(missing_ok=True)
            raise
        else:
            return descriptor
