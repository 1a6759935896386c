"""The store at an fsspec address, for several machines: the folder of the home is only its read cache.

Every look-up asks the address first, so an entry that somebody discarded is gone for all. Then it takes the copy in the
read cache, if that is whole and has the same manifest, or else fetches the entry. A damaged copy is fetched again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdq_core.errors import KdqError, StoreError
from kdq_core.store.beats import beating
from kdq_core.store.checks import MANIFEST
from kdq_core.store.claims import Claim
from kdq_core.store.hashing import canonical, sha256_of
from kdq_core.store.objects import Objects, Seen
from kdq_core.store.published import (
    Published,
    RemoteDamageError,
    Sheet,
    fetch,
    index_name,
    published,
    put_files,
    remove_files,
    sheet_name,
)
from kdq_core.store.reading import DamageError, text_of
from kdq_core.store.records import Manifest
from kdq_core.store.store import Entry, Store, explained

DAY = 86400.0
LISTING = 10.0
"""Seconds for which KDQ does not list an index again: a plan of many branches explains many misses."""


class RemoteStore(Store):
    """Entries by key below an address; safe for several machines at once."""

    def __init__(self, root: Path, objects: Objects) -> None:
        super().__init__(root)
        self.objects = objects
        self._listings: dict[str, tuple[float, list[str]]] = {}

    def check(self) -> str:
        """See `Store.check`: the address answers, can be written, and has conditional writes."""
        self.objects.check()
        return f"{self.objects.address}, read cache in {str(self.root)!r}"

    def get(self, key: str) -> Entry:
        """See `Store.get`; it takes a whole copy of the read cache without asking the address."""
        with contextlib.suppress(DamageError):
            entry = super()._whole(key)
            if entry is not None:
                return entry
        return super().get(key)

    def lookup_or_discard(self, key: str, tell: Callable[[str], None]) -> Entry | None:
        """See `Store.lookup_or_discard`; a damaged entry is discarded for all machines."""
        try:
            return self._whole(key)
        except RemoteDamageError as damage:
            if self.objects.swap(sheet_name(key), None, damage.tag) is None:  # another machine has mended it
                return self.lookup(key)
            tell(f"{damage}; KDQ computes it anew")
            self._clear(key, damage.entry)
        return None

    def peek(self, key: str) -> str | None:
        """See `Store.peek`."""
        try:
            found = published(self.objects, key)
        except DamageError as damage:
            raise StoreError(f"{damage}; KDQ computes it anew") from None
        return None if found is None else Entry(self.folder(key), found.manifest).digest

    @contextlib.contextmanager
    def claim(
        self, key: str, *, on_wait: Callable[[], None] = lambda: None, check: Callable[[], None] = lambda: None
    ) -> Iterator[Claim]:
        """See `Store.claim`: among the processes of this home by its lock, among homes by an object that beats."""
        self.objects.check()
        with (
            super().claim(key, on_wait=on_wait, check=check) as claim,
            beating(self.objects, key, self._place(), on_wait=on_wait, check=check),
        ):
            yield claim

    def discard(self, key: str) -> None:
        """See `Store.discard`; the entry is gone for all machines."""
        found = None
        with contextlib.suppress(DamageError):
            found = published(self.objects, key)
        self.objects.remove(sheet_name(key))
        self._clear(key, found)

    def discard_unused(self, key: str, since: float) -> bool:
        """See `Store.discard_unused`; the time of a use is that of the store, to a day."""
        used = self.objects.seen(f"used/{key}")
        if used is not None and used.written > since:
            return False
        self.discard(key)
        return True

    def manifest(self, key: str) -> Manifest:
        """See `Store.manifest`."""
        found = published(self.objects, key)
        if found is None:
            raise RemoteDamageError(self.objects, key, MANIFEST, "it is missing")
        return found.manifest

    def damage(self, key: str) -> str | None:
        """See `Store.damage`; KDQ fetches every file for it."""
        try:
            found = published(self.objects, key)
            if found is not None:
                with self.draft(key) as draft:
                    fetch(self.objects, key, found, draft)
        except DamageError as damage:
            return str(damage)
        return None

    def manifests(self, stage: str) -> Iterator[Manifest]:
        """See `Store.manifests`."""
        for key in self._keys(stage, fresh=True):
            with contextlib.suppress(DamageError):
                found = published(self.objects, key)
                if found is not None:
                    yield found.manifest

    def parts(self, stage: str) -> Iterator[dict[str, Any]]:
        """See `Store.parts`; a copy of each part lies in the read cache."""
        for key in self._keys(stage):
            file = self.root / index_name(stage, key)
            with contextlib.suppress(ValueError, OSError):
                if not file.is_file():
                    found = self.objects.read(index_name(stage, key))
                    if found is None:
                        continue
                    self._index.add(stage, key, json.loads(found[0]))
                yield json.loads(file.read_bytes())

    def _keys(self, stage: str, *, fresh: bool = False) -> list[str]:
        """Keys of the entries of a stage, newest first."""
        at, keys = self._listings.get(stage, (-LISTING, []))
        if fresh or time.monotonic() - at >= LISTING:
            found: dict[str, Seen] = self.objects.listed(index_name(stage))
            keys = sorted(found, key=lambda key: (found[key].written, key), reverse=True)
            self._listings[stage] = (time.monotonic(), keys)
        return keys

    def _whole(self, key: str, at: Path | None = None) -> Entry | None:
        if at is not None:
            return super()._whole(key, at)
        failed = ""
        while (found := published(self.objects, key)) is not None:
            try:
                entry = self._copy(key, found) or self._fetched(key, found)
            except RemoteDamageError:
                if failed == found.tag:
                    raise
                failed = found.tag  # another machine may have removed it meanwhile, or the way here spoilt it
            else:
                self._use(key)
                return entry
        return None

    def _copy(self, key: str, found: Published) -> Entry | None:
        """The copy in the read cache, if it is whole and of this manifest."""
        with contextlib.suppress(DamageError), explained(self.folder(key), "read the store entry"):
            if text_of(self.folder(key)) == found.sheet.manifest.encode():
                return super()._whole(key)
        return None

    def _fetched(self, key: str, found: Published) -> Entry:
        with self.draft(key) as draft, explained(self.root, "write to the store"):
            fetch(self.objects, key, found, draft)
            return self._kept(draft, found)

    def _kept(self, draft: Path, found: Published) -> Entry:
        """Make a draft the copy in the read cache, unless a process of this home has just done so."""
        key, folder = found.manifest.key, self.folder(found.manifest.key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        while (copy := self._copy(key, found)) is None:
            if os.path.lexists(folder):
                self._removed(key)
            self._index.add(found.manifest.stage, key, found.manifest.parts)
            try:
                draft.rename(folder)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
            else:
                return Entry(folder, found.manifest)
        return copy

    def _put(self, draft: Path, manifest: Manifest, text: bytes) -> Entry:
        """Put the files, then the manifest, unless another machine was first."""
        self.objects.check()
        key, sheet = manifest.key, Sheet(attempt=uuid.uuid4().hex, seal=sha256_of(text), manifest=text.decode())
        put_files(self.objects, manifest, sheet.attempt, draft)
        self.objects.write(index_name(manifest.stage, key), canonical(manifest.parts))
        while (tag := self.objects.create(sheet_name(key), sheet.model_dump_json().encode())) is None:
            with contextlib.suppress(DamageError):
                found = published(self.objects, key)
                if found is not None and found.sheet.attempt == sheet.attempt:
                    tag = found.tag  # the answer to an earlier request of ours was lost
                    break
            other = self.lookup_or_discard(key, lambda _text: None)
            if other is not None:
                remove_files(self.objects, manifest, sheet.attempt)
                return other
        self._use(key)
        return self._kept(draft, Published(sheet, tag, manifest))

    def _use(self, key: str) -> None:
        """Tell the store, once a day, that this home uses an entry; a store that cannot be written is not told."""
        mark = self.root / "used" / key
        with contextlib.suppress(KdqError, OSError):
            if mark.exists() and time.time() - mark.stat().st_mtime < DAY:
                return
            self.objects.write(f"used/{key}", b"")
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()

    def _clear(self, key: str, entry: Published | None) -> None:
        """Remove what lies around an entry whose manifest is gone, and its copy in the read cache."""
        if entry is not None:
            remove_files(self.objects, entry.manifest, entry.sheet.attempt)
            self.objects.remove(index_name(entry.manifest.stage, key))
        self.objects.remove(f"used/{key}")
        (self.root / "used" / key).unlink(missing_ok=True)
        with explained(self.root, "write to the store"):
            self._removed(key)

    def _place(self) -> str:
        """Name of this read cache on this machine since it was started: where its lock files hold."""
        boot = Path("/proc/sys/kernel/random/boot_id")
        with explained(self.root, "read the store"):
            found = self.root.stat()
            started = boot.read_text() if boot.exists() else ""
        return sha256_of(f"{platform.node()} {started} {found.st_dev} {found.st_ino}".encode())[:16]
