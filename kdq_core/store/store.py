"""The content-addressed store: the record of what was computed.

An entry is a folder named by its stage's key. It is written under a temporary name, fsynced and renamed, so that it is
there whole or not at all. `manifest.json` lists its files with their sha256; `manifest.sha256` guards the manifest.
Everything is hashed again on every read. Failures are never stored.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from kdq_core.errors import StoreError
from kdq_core.store.records import FileRef, Manifest, Record

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
LOCK = ".lock"
"""Ending of the file beside a draft whose lock its writer holds: it ends with the process, whatever ends that."""


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def sha256_of(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Entry:
    """A verified entry of the store."""

    folder: Path
    manifest: Manifest

    @property
    def record(self) -> Record:
        """What the stage gave."""
        return self.manifest.record

    @property
    def digest(self) -> str:
        """sha256 of what the stage gave: its record and its files, not how it was asked for."""
        content = self.manifest.model_dump(mode="json", include={"record", "files"})
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
    """Whether there was no room to write, also where a library says so in words of its own, as safetensors does."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in codes
    return any(f"os error {code}" in str(error) or os.strerror(code) in str(error) for code in codes)


@contextlib.contextmanager
def explained(folder: Path, doing: str) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` that says what is true and what to do."""
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


class Store:
    """Entries by key below one folder; safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: str) -> Path:
        """Where the entry of `key` is, or would be."""
        return self.root / key[:2] / key

    def lookup(self, key: str) -> Entry | None:
        """The verified entry of `key`, or `None` where there is none.

        Raises:
            StoreError: a file is missing or not what was written.
        """
        folder = self.folder(key)
        if not folder.is_dir():
            return None
        with explained(folder, "read the store entry"):
            entry = Entry(folder, self._manifest(folder))
            for ref in entry.manifest.files:
                self._verify(folder, ref)
        return entry

    def peek(self, key: str) -> str | None:
        """Digest of the entry of `key` as its manifest says, or `None`; its files are not read.

        Raises:
            StoreError: the manifest cannot be read.
        """
        folder = self.folder(key)
        if not folder.is_dir():
            return None
        with explained(folder, "read the store entry"):
            return Entry(folder, self._manifest(folder)).digest

    def get(self, key: str) -> Entry:
        """The verified entry of `key`, which must exist."""
        entry = self.lookup(key)
        if entry is None:
            raise StoreError(f"the store has no entry {key!r}; run the recipe again to compute it")
        return entry

    @contextlib.contextmanager
    def draft(self, key: str) -> Iterator[Path]:
        """An empty folder to fill for `key`; it is removed unless `commit` has renamed it."""
        folder = self.root / "drafts" / f"{key}.{uuid.uuid4().hex}"
        lock = folder.with_name(folder.name + LOCK)
        with explained(self.root, "write to the store"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            held = _held(lock)
        try:
            with explained(self.root, "write to the store"):
                folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(held)

    def commit(self, draft: Path, *, stage: str, key: str, parts: dict[str, JsonValue], record: Record) -> Entry:
        """Seal `draft` as the entry of `key`; where another process was first, its entry is given."""
        with explained(self.root, "write to the store"):
            names = sorted(p.relative_to(draft).as_posix() for p in draft.rglob("*") if p.is_file())
            files = tuple(
                FileRef(path=n, sha256=sha256_file(draft / n), bytes=(draft / n).stat().st_size) for n in names
            )
            manifest = Manifest(stage=stage, key=key, parts=parts, record=record, files=files)
            text = manifest.model_dump_json(indent=1).encode()
            (draft / MANIFEST).write_bytes(text)
            (draft / SEAL).write_text(sha256_of(text) + "\n")
            for path in [*draft.rglob("*"), draft]:
                _fsync(path)
            final = self.folder(key)
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                draft.rename(final)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            _fsync(final.parent)
        return self.get(key)

    def discard(self, key: str) -> None:
        """Remove the entry of `key`, if it is there."""
        with explained(self.root, "write to the store"):
            shutil.rmtree(self.folder(key), ignore_errors=True)

    def manifests(self, stage: str) -> Iterator[Manifest]:
        """All readable manifests of `stage`, newest first; damaged ones are passed over."""
        found = sorted(self.root.glob(f"??/*/{MANIFEST}"), key=lambda p: p.stat().st_mtime, reverse=True)
        for path in found:
            with contextlib.suppress(StoreError, OSError):
                manifest = self._manifest(path.parent)
                if manifest.stage == stage:
                    yield manifest

    def sweep(self) -> list[str]:
        """Remove drafts that no process writes any more; give their names. What has no lock beside it stays."""
        swept = []
        for lock in sorted(self.root.glob(f"drafts/*{LOCK}")):
            with contextlib.suppress(OSError), lock.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink()
                swept.append(lock.stem)
        return swept

    def _manifest(self, folder: Path) -> Manifest:
        text, seal = self._read(folder, MANIFEST), self._read(folder, SEAL).decode(errors="replace").strip()
        if sha256_of(text) != seal:
            raise _damaged(folder, MANIFEST, f"its sha256 is {sha256_of(text)[:12]}, the seal says {seal[:12]}")
        try:
            return Manifest.model_validate_json(text)
        except ValidationError as error:
            raise _damaged(folder, MANIFEST, "it was written by another version of KDQ") from error

    @staticmethod
    def _read(folder: Path, name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except FileNotFoundError:
            raise _damaged(folder, name, "it is missing") from None

    @staticmethod
    def _verify(folder: Path, ref: FileRef) -> None:
        path = folder / ref.path
        if not path.is_file():
            raise _damaged(folder, ref.path, "it is missing")
        found = sha256_file(path)
        if found != ref.sha256:
            raise _damaged(folder, ref.path, f"its sha256 is {found[:12]}, the manifest says {ref.sha256[:12]}")


def _damaged(folder: Path, name: str, fact: str) -> StoreError:
    return StoreError(
        f"the file {name!r} of the store entry {str(folder)!r} is damaged: {fact}; "
        "delete that folder and run again: only its stage is computed anew"
    )


def _held(lock: Path) -> int:
    """A descriptor of the new file `lock`, which is locked before it has that name: no sweep takes it for left."""
    unnamed = lock.with_suffix(".new")
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        unnamed.rename(lock)
    except BaseException:
        os.close(descriptor)
        unnamed.unlink(missing_ok=True)
        raise
    return descriptor


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
