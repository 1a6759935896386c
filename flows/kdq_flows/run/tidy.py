"""Removes what processes that died left in a home."""

from __future__ import annotations

import shutil
from contextlib import suppress

from kdq_core.errors import StoreError
from kdq_core.recipe.site import Site
from kdq_core.store import open_store


def tidy(site: Site) -> None:
    """Remove drafts without a process, and the scratch of stages whose entry is in the store.

    The scratch of an unfinished stage stays, because its next try resumes from it.

    Raises:
        StoreError: the store cannot be read.
    """
    store = open_store(site)
    store.sweep()
    for folder in (site.home / "scratch").glob("?" * 64):
        with suppress(StoreError):  # a damaged entry is computed anew, with this scratch
            if store.peek(folder.name) is not None:
                shutil.rmtree(folder, ignore_errors=True)
