"""The content-addressed store: it keeps the result of each stage.

An entry is a folder named by its stage's key. KDQ writes it under a temporary name, fsyncs and renames it, so that it
exists whole or not at all. `manifest.json` lists its files with their sha256; `manifest.sha256` guards the manifest.
KDQ hashes files again when it reads them, large ones once an hour. It never stores failures. The time of an entry's
folder is that of its last use, for `kdq cache gc`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue, ValidationError

from kdq_core.errors import StageError, StoreError
from kdq_core.store import drafts
from kdq_core.store.checks import MANIFEST, SEAL, check_weights, names_in, sealed
from kdq_core.store.claims import Claim, claimed, unheld
from kdq_core.store.family import Record, resolved, type_of
from kdq_core.store.hashing import canonical, sha256_file, sha256_of
from kdq_core.store.index import Index
from kdq_core.store.reading import DamageError, manifest_of, verify
from kdq_core.store.records import FileRef, Manifest
from kdq_core.store.verified import Verified

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Entry:
    """A verified entry of the store."""

    folder: Path
    manifest: Manifest

    @property
    def record(self) -> Record:
        """The record that the stage gave."""
        return resolved(self.manifest.record)

    def record_as(self, cls: type[R]) -> R:
        """Give the stage's record as a `cls`.

        Raises:
            StageError: it has another type, or its class has changed since KDQ wrote it.
        """
        stage = self.manifest.stage
        try:
            record = self.record
        except ValidationError as error:
            raise StageError(
                f"the {self.manifest.record.type!r} in the entry of stage {stage!r} does not fit its class: "
                f"{error.errors()[0]['msg']}; run again with the version of the plug-in that wrote it, or delete "
                f"{str(self.folder)!r}"
            ) from error
        if isinstance(record, cls):
            return record
        raise StageError(
            f"the entry of stage {stage!r} holds a {record.type!r}, not a {type_of(cls)!r}; take one from a stage that "
            "gives it"
        )

    @property
    def digest(self) -> str:
        """sha256 of the stage's record and files; the parts of its key do not count, nor does the record's `timings`.

        Times never repeat, and what stands on a choice depends on the choice.
        """
        content = self.manifest.model_dump(mode="json", include={"record", "files"})
        content["record"].pop("timings", None)
        return sha256_of(canonical(content))

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists."""
        return self.folder / name

    def sha256(self, name: str) -> str:
        """Digest of a file that the manifest lists."""
        return next(ref.sha256 for ref in self.manifest.files if ref.path == name)


FULL = "the disk is full"
MAKE_ROOM = "free some space or set KDQ_HOME to a larger disk, then run again"


def disk_is_full(error: BaseException) -> bool:
    """Whether the error means a full disk; some libraries, such as safetensors, say so in the text only."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in codes
    return any(f"os error {code}" in str(error) or os.strerror(code) in str(error) for code in codes)


@contextlib.contextmanager
def explained(folder: Path, doing: str) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` that says what happened and what to do."""
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            fact, remedy = FULL, MAKE_ROOM
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            fact, remedy = "it is not writable", "make it writable or set KDQ_HOME to a folder that is"
        else:
            fact, remedy = str(error.strerror or error), "check the folder, then run again"
        raise StoreError(
            f"cannot {doing} {str(folder)!r}: {fact}; {remedy}. Nothing was half-written: finished stages are kept"
        ) from error


def check_writable(home: Path) -> None:
    """Refuse a home that KDQ cannot write or make; makes and writes nothing.

    Raises:
        StoreError: it, or the nearest folder above that exists, is not writable or no folder.
    """
    with explained(home, "write to KDQ_HOME"):
        there = next(path for path in (home, *home.parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{str(there)!r} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable")


class Store:
    """Entries by key below one folder; safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._index = Index(root)
        self._verified = Verified(root / "verified")

    def check(self) -> str:
        """Tell where the store is.

        Raises:
            KdqError: it cannot be used.
        """
        return str(self.root)

    def folder(self, key: str) -> Path:
        """The folder of the entry of `key`, which need not exist."""
        return self.root / key[:2] / key

    def lookup(self, key: str) -> Entry | None:
        """Read and verify the entry of `key`; `None` if there is none.

        Raises:
            StoreError: it is damaged, or cannot be read.
        """
        try:
            return self._whole(key)
        except DamageError as damage:
            raise StoreError(f"{damage}; KDQ computes it anew") from None

    def get(self, key: str) -> Entry:
        """Read and verify the entry of `key`, which must exist.

        Raises:
            StoreError: it does not exist, is damaged, or cannot be read.
        """
        try:
            entry = self._whole(key)
        except DamageError as damage:
            raise StoreError(f"{damage}; run again, and KDQ computes it anew") from None
        if entry is None:
            raise StoreError(f"the store has no entry {key!r}; run the recipe again to compute it")
        return entry

    def lookup_or_discard(self, key: str, tell: Callable[[str], None]) -> Entry | None:
        """Read and verify the entry of `key`; remove a damaged one. `None` if there is none, or none any more.

        Args:
            key: key of the entry.
            tell: gets a message about a damaged entry.

        Raises:
            StoreError: it cannot be read, or it is damaged and cannot be removed.
        """
        try:
            return self._whole(key)
        except DamageError as damage:
            try:
                whole = self._removed(key, only_damaged=True)
            except OSError as error:
                raise StoreError(
                    f"{damage}; KDQ cannot remove that entry: {error.strerror or error}. Make the store "
                    f"{str(self.root)!r} writable, then run again"
                ) from error
            if whole:  # meanwhile, another process has replaced it
                return self.lookup(key)
            tell(f"{damage}; KDQ computes it anew")
        return None

    def peek(self, key: str) -> str | None:
        """Read the digest of the entry of `key` from its manifest, without its files; `None` if there is no entry.

        Raises:
            StoreError: the manifest cannot be read.
        """
        folder = self.folder(key)
        if not os.path.lexists(folder):
            return None
        with explained(folder, "read the store entry"):
            try:
                return Entry(folder, manifest_of(folder, key)).digest
            except DamageError as damage:
                raise StoreError(f"{damage}; KDQ computes it anew") from None

    @contextlib.contextmanager
    def claim(
        self, key: str, *, on_wait: Callable[[], None] = lambda: None, check: Callable[[], None] = lambda: None
    ) -> Iterator[Claim]:
        """Hold the right to compute the entry of `key`. Look it up again then: another process may have written it.

        Args:
            key: key of the entry.
            on_wait: called once if another process holds the claim.
            check: called while this process waits; what it raises ends the waiting.

        Raises:
            StoreError: the store cannot be written.
        """
        with contextlib.ExitStack() as stack:
            with explained(self.root, "write to the store"):
                path = self.root / "claims" / f"{key}.lock"
                claim = stack.enter_context(claimed(path, on_wait=on_wait, check=check))
            yield claim

    @contextlib.contextmanager
    def draft(self, key: str) -> Iterator[Path]:
        """Make an empty folder for the files of `key`; at the end, remove it unless `commit` has renamed it."""
        with contextlib.ExitStack() as stack:
            with explained(self.root, "write to the store"):
                folder = stack.enter_context(drafts.place(self.root / "drafts", key))
                folder.mkdir()
            yield folder

    def commit(self, draft: Path, *, stage: str, key: str, parts: dict[str, JsonValue], record: Record) -> Entry:
        """Seal `draft` as the entry of `key`; if another process was first, give its entry.

        Raises:
            StageError: the stage left a symlink, a number or a weight that is not finite, or a record that cannot be
                read again.
            StoreError: it cannot be written.
        """
        with explained(self.root, "write to the store"):
            names = names_in(draft, stage)
            check_weights(draft, names, stage)
            files = tuple(
                FileRef(path=n, sha256=sha256_file(draft / n), bytes=(draft / n).stat().st_size) for n in names
            )
            manifest, text = sealed(Manifest(stage=stage, key=key, parts=parts, record=record, files=files))
            (draft / MANIFEST).write_bytes(text)
            (draft / SEAL).write_text(sha256_of(text) + "\n")
            for path in [*draft.rglob("*"), draft]:
                drafts.fsync(path)
            return self._put(draft, manifest, text)

    def discard(self, key: str) -> None:
        """Remove the entry of `key`, if it is there."""
        with explained(self.root, "write to the store"):
            self._removed(key)

    def discard_unused(self, key: str, since: float) -> bool:
        """Remove the entry of `key`, unless a process has looked it up after `since`; whether it is gone.

        A process that looks it up while this runs either finds it, and it stays, or does not, and computes it anew.

        Args:
            key: key of the entry.
            since: seconds since 1970.

        Raises:
            StoreError: the store cannot be written.
        """
        with explained(self.root, "write to the store"), drafts.place(self.root / "drafts", key) as away:
            with contextlib.suppress(FileNotFoundError):
                self.folder(key).rename(away)
                if away.stat().st_mtime > since:
                    with contextlib.suppress(OSError):
                        away.rename(self.folder(key))
                    return False
            self._verified.drop(key)
            self._index.drop(key)
        return True

    def manifest(self, key: str) -> Manifest:
        """Read the manifest of the entry of `key`, without its files.

        Raises:
            DamageError: it is damaged or missing.
        """
        return manifest_of(self.folder(key), key)

    def damage(self, key: str) -> str | None:
        """Hash every file of the entry of `key` again; gives what is damaged, or `None`. It is no use of the entry."""
        folder = self.folder(key)
        with explained(folder, "read the store entry"):
            try:
                verify(folder, manifest_of(folder, key), {})
            except DamageError as damage:
                return str(damage) if os.path.lexists(folder) else None
        return None

    def manifests(self, stage: str) -> Iterator[Manifest]:
        """Yield all readable manifests of `stage`, newest first; skip damaged ones."""
        for key in self._index.keys(stage):
            with contextlib.suppress(DamageError, OSError):
                yield manifest_of(self.folder(key), key)

    def parts(self, stage: str) -> Iterator[dict[str, Any]]:
        """The parts of the keys of the entries of `stage`, newest first, from the index."""
        return self._index.parts(stage)

    def sweep(self) -> list[str]:
        """Remove what dead processes left: claims, and drafts, whose names it gives. A folder without a lock stays."""
        unheld(self.root / "claims")
        return drafts.sweep(self.root / "drafts")

    def _whole(self, key: str, at: Path | None = None) -> Entry | None:
        """Read the entry of `key`, and verify all its files; `None` if there is none.

        Raises:
            DamageError: it is damaged.
        """
        folder = at or self.folder(key)
        if at is None:
            with contextlib.suppress(OSError):  # there is none, or the store is another user's
                os.utime(folder)  # the time of an entry's folder is that of its last use
        if not os.path.lexists(folder):
            return None
        with explained(folder, "read the store entry"):
            manifest, marks = manifest_of(folder, key), self._verified.of(key)
            kept = verify(folder, manifest, marks)
            if kept != marks:
                self._verified.keep(key, kept)
        return Entry(folder, manifest)

    def _put(self, draft: Path, manifest: Manifest, text: bytes) -> Entry:  # noqa: ARG002 - a store elsewhere needs it
        """Make a whole draft the entry; if another process was first, give its entry."""
        self._index.add(manifest.stage, manifest.key, manifest.parts)
        return self._renamed(draft, manifest.key) or Entry(self.folder(manifest.key), manifest)

    def _renamed(self, draft: Path, key: str) -> Entry | None:
        """Rename `draft` to its final place; if another process has put a whole entry there, return that entry."""
        final = self.folder(key)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.rename(final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            other = self.lookup_or_discard(key, lambda _text: None)
            if other is not None:
                return other
            draft.rename(final)
        drafts.fsync(final.parent)
        return None

    def _removed(self, key: str, *, only_damaged: bool = False) -> bool:
        """Remove the entry of `key` in one step. With `only_damaged`, put a whole entry back and give `True`.

        Raises:
            OSError: the entry cannot be removed.
        """
        with drafts.place(self.root / "drafts", key) as away:
            with contextlib.suppress(FileNotFoundError):
                self.folder(key).rename(away)
            if only_damaged and self._is_whole(key, away):
                with contextlib.suppress(OSError):
                    away.rename(self.folder(key))
                return True
            self._verified.drop(key)
            self._index.drop(key)
        return False

    def _is_whole(self, key: str, at: Path) -> bool:
        try:
            return self._whole(key, at) is not None
        except DamageError:
            return False
