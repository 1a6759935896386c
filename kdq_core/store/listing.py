"""What lies in a store: its entries with their sizes and ages, and which of them others were made from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from kdq_core.store.listed import Listed
from kdq_core.store.reading import DamageError
from kdq_core.store.remote import RemoteStore
from kdq_core.store.store import Entry, Store
from kdq_core.store.tidying import entries_at


def entries(store: Store) -> Iterator[Listed]:
    """All entries, in no order; those that another process removes meanwhile are left out."""
    if isinstance(store, RemoteStore):
        yield from entries_at(store)
        return
    for folder in store.root.glob("??/*"):
        with contextlib.suppress(FileNotFoundError):
            files = [path.lstat() for path in folder.rglob("*") if path.is_file()]
            used = folder.stat().st_mtime
            made = min((one.st_mtime for one in files), default=used)
            try:
                manifest = store.manifest(folder.name)
            except DamageError:
                manifest = None
            yield Listed(folder.name, folder, sum(one.st_size for one in files), made, used, manifest)


def lineage(tips: Iterable[Listed], among: Iterable[Listed]) -> set[str]:
    """Keys of the entries that `tips` were made from, and of those that these were made from, and so on."""
    by_digest: dict[str, list[Listed]] = {}
    for one in among:
        if one.manifest is not None:
            by_digest.setdefault(Entry(one.folder, one.manifest).digest, []).append(one)
    found, waiting = set[str](), list(tips)
    while waiting:
        one = waiting.pop()
        if one.key in found or one.manifest is None:
            continue
        found.add(one.key)
        parents = one.manifest.parts.get("parents")
        for digest in parents.values() if isinstance(parents, dict) else ():
            waiting += by_digest.get(str(digest), [])
    return found
