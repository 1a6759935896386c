"""The claim of a key: of all runs that want the same entry, one computes it, and the others wait."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kdq_core.locks import held, try_held


class Claim(NamedTuple):
    """A claim that this process holds.

    Attributes:
        descriptors: open files that hold it. A child that inherits them holds it too, until it ends.
    """

    descriptors: tuple[int, ...] = ()


@contextlib.contextmanager
def claimed(
    path: Path, *, on_wait: Callable[[], None] = lambda: None, check: Callable[[], None] = lambda: None
) -> Iterator[Claim]:
    """Hold the claim that the lock file `path` stands for, among the processes and threads of one machine.

    If its holder dies, the next process gets the claim at once. At the end, the file is removed.

    Args:
        path: the lock file.
        on_wait: called once if another holds the claim.
        check: called while this process waits; what it raises ends the waiting.

    Raises:
        OSError: the file cannot be written.
    """
    lock = try_held(path)
    if lock is None:
        on_wait()
        lock = held(path, check=check)
    with lock:
        try:
            yield Claim((lock.fileno(),))
        finally:
            path.unlink(missing_ok=True)


def unheld(folder: Path) -> None:
    """Remove the lock files below `folder` that nobody holds: a holder that is killed leaves its own."""
    for path in folder.glob("*.lock"):
        with contextlib.suppress(OSError):
            lock = try_held(path)
            if lock is not None:
                with lock:
                    path.unlink(missing_ok=True)
