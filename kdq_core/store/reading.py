"""Reads an entry, and finds damage in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from kdq_core.store.checks import MANIFEST, SEAL
from kdq_core.store.hashing import sha256_of
from kdq_core.store.records import Manifest
from kdq_core.store.verified import Mark, hashed


class DamageError(Exception):
    """An entry is damaged. `Store` turns it into a `StoreError` that says what KDQ does about it."""

    def __init__(self, folder: Path | str, name: str, fact: str) -> None:
        super().__init__(f"the file {name!r} of the store entry {str(folder)!r} is damaged: {fact}")


def manifest_of(folder: Path, key: str) -> Manifest:
    """Read the manifest of the entry `key` in `folder`.

    Raises:
        DamageError: the manifest is missing, changed, belongs to another entry, or cannot be read.
    """
    try:
        manifest = Manifest.model_validate_json(text_of(folder))
    except ValidationError as error:
        raise DamageError(folder, MANIFEST, "it was written by another version of KDQ or of a plug-in") from error
    if manifest.key != key:
        raise DamageError(folder, MANIFEST, f"it belongs to the entry {manifest.key[:12]}, not to {key[:12]}")
    return manifest


def text_of(folder: Path) -> bytes:
    """Read the text of the manifest in `folder`.

    Raises:
        DamageError: it is missing, or its sha256 differs from its seal.
    """
    text, seal = _read(folder, MANIFEST), _read(folder, SEAL).decode(errors="replace").strip()
    if sha256_of(text) != seal:
        raise DamageError(folder, MANIFEST, f"its sha256 is {sha256_of(text)[:12]}, the seal says {seal[:12]}")
    return text


def verify(folder: Path, manifest: Manifest, marks: Mapping[str, Mark]) -> dict[str, Mark]:
    """Check every file of an entry, and give its new marks.

    Raises:
        DamageError: a file is missing, changed, or not in the entry.
    """
    kept = {}
    for ref in manifest.files:
        _check_place(folder, ref.path)
        found, mark = hashed(folder, ref, marks.get(ref.path))
        if found != ref.sha256:
            said = f"its sha256 is {found[:12]}, the manifest says {ref.sha256[:12]}"
            raise DamageError(folder, ref.path, said)
        if mark is not None:
            kept[ref.path] = mark
    return kept


def _read(folder: Path, name: str) -> bytes:
    _check_place(folder, name)
    return (folder / name).read_bytes()


def _check_place(folder: Path, name: str) -> None:
    """Refuse a name that is not a plain file inside `folder`."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):  # an absolute path begins with an empty part
        raise DamageError(folder, name, "it leads out of the entry")
    for count in range(1, len(parts) + 1):
        inner = "/".join(parts[:count])
        if (folder / inner).is_symlink():
            raise DamageError(
                folder, name, "it is a symlink" if inner == name else f"it lies behind the symlink {inner!r}"
            )
    if not os.path.lexists(folder / name):
        raise DamageError(folder, name, "it is missing")
    if not stat.S_ISREG((folder / name).lstat().st_mode):
        raise DamageError(folder, name, "it is no file")
