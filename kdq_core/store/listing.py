"""What lies in a store: its entries with their sizes and ages, and which of them others were made from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kdq_core.store.reading import DamageError
from kdq_core.store.records import Manifest
from kdq_core.store.store import Entry, Store


@dataclass(frozen=True)
class Listed:
    """An entry of the store.

    Attributes:
        key: its key.
        folder: where it lies.
        bytes: of all its files.
        made: when it was written, in seconds since 1970.
        used: when a stage or a command looked it up last.
        manifest: its table of contents; `None` if that is damaged.
    """

    key: str
    folder: Path
    bytes: int
    made: float
    used: float
    manifest: Manifest | None

    @property
    def stage(self) -> str:
        """The kind of stage that gave it; `?` if its manifest is damaged."""
        return "?" if self.manifest is None else self.manifest.stage


def entries(store: Store) -> Iterator[Listed]:
    """All entries, in no order; those that another process removes meanwhile are left out."""
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
