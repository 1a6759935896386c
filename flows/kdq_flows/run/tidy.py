"""Removes what processes that died left in a home."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kdq_core.errors import StoreError
from kdq_core.recipe.site import Site
from kdq_core.store import drafts, open_store


@contextmanager
def tidied(site: Site) -> Iterator[None]:
    """Tidy a home before a run and after it, because tries that died leave something too.

    Raises:
        StoreError: the store cannot be read before the run.
    """
    tidy(site)
    try:
        yield
    finally:
        with suppress(StoreError):
            tidy(site)


def tidy(site: Site) -> None:
    """Remove drafts and other temporary folders without a process, and the scratch of stages that the store has.

    The scratch of an unfinished stage stays, because its next try resumes from it.

    Raises:
        StoreError: the store cannot be read.
    """
    store = open_store(site)
    store.sweep()
    drafts.sweep(site.home / "scratch")
    for folder in (site.home / "scratch").glob("?" * 64):
        with suppress(StoreError):  # a damaged entry is computed anew, with this scratch
            if store.peek(folder.name) is not None:
                shutil.rmtree(folder, ignore_errors=True)
