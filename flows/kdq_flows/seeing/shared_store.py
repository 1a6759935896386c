"""What `kdq cache` adds for a store for several machines: its read cache, and what killed processes left in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from kdq_core.recipe.spec import Site
from kdq_core.store.remote import DAY, RemoteStore
from kdq_core.store.store import Store
from kdq_core.store.tidying import left_behind
from kdq_flows.report.numbers import number


def cache_bytes(site: Site) -> int:
    """Size of the read cache."""
    return sum(size for _, size, _ in _copies(site))


def tidied(store: RemoteStore, site: Site, older: float | None, recent: float, *, delete: bool) -> list[str]:
    """Find, and with `delete` drop, what else may go; gives remarks for the user.

    Args:
        store: the shared store.
        site: its home has the read cache.
        older: copies in the read cache that nobody used for so many seconds go; `None`: none of them.
        recent: a copy that was used in so many seconds stays.
        delete: drop them.
    """
    notes = [
        f"the store {store.objects.address!r} is shared: what goes is gone for every machine. KDQ does not know the "
        "runs of other homes; entries that any home used in the last day stay"
    ]
    went = "dropped" if delete else "would go"
    left = left_behind(store)
    if left.names:
        notes.append(f"{len(left.names)} objects that killed processes left {went}: {number(left.bytes, 'bytes')}")
        if delete:
            store.objects.remove(*left.names)
    if older is not None:
        now, bound = time.time(), max(older, recent)
        old = [(folder, size) for folder, size, used in _copies(site) if now - used >= bound]
        if old:
            notes.append(f"{len(old)} copies in the read cache {went}: {number(sum(size for _, size in old), 'bytes')}")
        for folder, _ in old if delete else ():
            Store(site.store).discard(folder.name)
    return notes


def unused_for(site: Site, recent: float) -> float:
    """Seconds for which an entry stays in any case."""
    return recent if site.store_address is None else recent + DAY


def _copies(site: Site) -> Iterator[tuple[Path, int, float]]:
    """Folder, size and last use of each copy in the read cache."""
    for folder in site.store.glob("??/*"):
        files = [path for path in folder.rglob("*") if path.is_file()]
        yield folder, sum(path.lstat().st_size for path in files), folder.stat().st_mtime
