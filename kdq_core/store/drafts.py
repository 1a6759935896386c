"""Folders that are being written or removed, each with a lock that ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"
"""Ending of the file beside a folder whose lock its process holds."""
NEW = ".new"
"""Ending of that file until it is locked."""


@contextlib.contextmanager
def place(drafts: Path, key: str) -> Iterator[Path]:
    """A path below `drafts` that is this process's own; what is there at the end is removed.

    Raises:
        OSError: nothing can be written there.
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
    """Remove what dead processes left, and give the names of the folders. A folder without a lock is not KDQ's."""
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
    """Let a file or a folder reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path, lock: Path) -> None:
    """Remove `folder`, and its lock once nothing is left of it: what cannot be removed now is swept later."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        if os.path.lexists(folder):
            folder.unlink()
        lock.unlink()


def _held(lock: Path) -> int:
    """A descriptor of the new file `lock`, which is locked before it has that name: no sweep takes it for left.

    A sweep may take it before it is locked; then it is made again.
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
