"""Marks of large files that KDQ hashed lately, so that readers need not hash them again.

A mark holds what the kernel reports of a file: size, times, inode. Every write to a file changes its `ctime`, which no
program can set. A mark cannot show that a disk changed bytes by itself, so it is valid for one hour only.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from kdq_core.frozen import Frozen
from kdq_core.store.hashing import sha256_file
from kdq_core.store.records import FileRef

LARGE = 8 << 20
"""Smallest size in bytes of a file with a mark. KDQ hashes smaller files on every read, which takes milliseconds."""
SECONDS = 3600.0
"""How long a mark is valid."""
SETTLED = 2.0
"""Seconds without a change before KDQ marks a file, because clocks of file systems are coarse."""


class Mark(Frozen):
    """The state of a file when KDQ hashed it."""

    sha256: str
    facts: tuple[int, ...]
    at: float


MARKS = TypeAdapter(dict[str, Mark])


class Verified:
    """The marks of a store, one small file for each entry; a read-only store gets no new ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, key: str) -> dict[str, Mark]:
        """The marks of the entry `key` by path in it."""
        with contextlib.suppress(OSError, ValidationError):
            return MARKS.validate_json((self._folder / key).read_bytes())
        return {}

    def keep(self, key: str, marks: dict[str, Mark]) -> None:
        """Store the marks of the entry `key`."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            fresh = self._folder / f"{key}.{os.getpid()}"
            fresh.write_bytes(MARKS.dump_json(marks))
            fresh.replace(self._folder / key)

    def drop(self, key: str) -> None:
        """Remove the marks of the entry `key`."""
        (self._folder / key).unlink(missing_ok=True)


def hashed(folder: Path, ref: FileRef, mark: Mark | None) -> tuple[str, Mark | None]:
    """Give the sha256 of a file, from its mark if that is still valid, and its new mark."""
    path = folder / ref.path
    seen, now = path.lstat(), time.time()
    facts = (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev)
    if mark is not None and mark.facts == facts and 0 <= now - mark.at < SECONDS:
        return mark.sha256, mark
    found = sha256_file(path)
    marked = seen.st_size >= LARGE and now - seen.st_ctime >= SETTLED
    return found, Mark(sha256=found, facts=facts, at=now) if marked else None
