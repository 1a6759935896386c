"""Folders for files that are on their way; what a killed process left, the next one removes."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from typing import TYPE_CHECKING

from kdq_core.locks import held, try_held
from kdq_registry.environment import folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kdq_core.recipe.spec import Site


@contextlib.contextmanager
def scratch(site: Site) -> Iterator[Path]:
    """Make an empty folder below KDQ_HOME, and remove it at the end, with those of dead processes."""
    shelf = folder(site) / "scratch"
    _sweep(shelf)
    lock = shelf / f"{uuid.uuid4().hex}.lock"
    with held(lock):
        path = lock.with_suffix("")
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            lock.unlink()


def _sweep(shelf: Path) -> None:
    for lock in shelf.glob("*.lock"):
        with contextlib.suppress(FileNotFoundError):
            dead = try_held(lock)
            if dead is not None:
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
                dead.close()
