"""An entry in a store for several machines: its files, and the object `manifest.json` that makes it one.

```
entries/<key>/manifest.json            written last, and once only
entries/<key>/<attempt>/<sha256>       the files, under the name of the attempt to put them
index/<stage>/<key>                    the parts of the key, to explain misses
used/<key>                             its time is that of the last use, to a day
claims/<key>.json                      who computes it now
```
Without its manifest an entry does not exist, so one that is half put cannot be seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from pydantic import ValidationError

from kdq_core.frozen import Frozen
from kdq_core.store.checks import MANIFEST, SEAL
from kdq_core.store.hashing import sha256_file, sha256_of
from kdq_core.store.objects import Objects
from kdq_core.store.reading import DamageError
from kdq_core.store.records import FileRef, Manifest


class Sheet(Frozen):
    """What the object `manifest.json` holds.

    Attributes:
        attempt: name of the folder with the files.
        seal: sha256 of the manifest.
        manifest: its text.
    """

    attempt: str
    seal: str
    manifest: str


class Published(NamedTuple):
    """An entry as its object says.

    Attributes:
        sheet: the content of the object.
        tag: the tag of the object.
        manifest: the manifest, read.
    """

    sheet: Sheet
    tag: str
    manifest: Manifest


def sheet_name(key: str) -> str:
    """Name of the object that makes an entry."""
    return f"entries/{key}/{MANIFEST}"


def index_name(stage: str, key: str = "") -> str:
    """Name of an object of the index, or of its folder."""
    return f"index/{quote(stage, safe='').replace('.', '%2E')}" + (f"/{key}" if key else "")


def published(objects: Objects, key: str) -> Published | None:
    """Read the manifest of the entry of `key`; `None` if there is none.

    Raises:
        DamageError: it was changed, belongs to another entry, or cannot be read.
        KdqError: the store cannot be reached.
    """
    found = objects.read(sheet_name(key))
    if found is None:
        return None
    try:
        sheet = Sheet.model_validate_json(found[0])
        if sha256_of(sheet.manifest.encode()) != sheet.seal:
            raise RemoteDamageError(
                objects, key, MANIFEST, f"its sha256 is not {sheet.seal[:12]}, as its seal says", tag=found[1]
            )
        manifest = Manifest.model_validate_json(sheet.manifest)
    except ValidationError as error:
        what = "it was written by another version of KDQ or of a plug-in"
        raise RemoteDamageError(objects, key, MANIFEST, what, tag=found[1]) from error
    if manifest.key != key:
        what = f"it belongs to the entry {manifest.key[:12]}, not to {key[:12]}"
        raise RemoteDamageError(objects, key, MANIFEST, what, tag=found[1])
    for ref in manifest.files:  # somebody else may have written it
        if any(part in ("", ".", "..") for part in ref.path.split("/")) or ref.path in (MANIFEST, SEAL):
            raise RemoteDamageError(objects, key, ref.path, "it leads out of the entry", tag=found[1])
    return Published(sheet, found[1], manifest)


def fetch(objects: Objects, key: str, entry: Published, folder: Path) -> None:
    """Copy an entry into an empty folder, as the local store keeps it.

    Raises:
        DamageError: a file is missing or changed.
        KdqError: the store cannot be reached.
        OSError: the folder cannot be written.
    """
    for ref in entry.manifest.files:
        file = folder / ref.path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not objects.download(_file(key, entry.sheet.attempt, ref), file):
            raise RemoteDamageError(objects, key, ref.path, "it is missing", entry=entry)
        found = sha256_file(file)
        if found != ref.sha256:
            what = f"its sha256 is {found[:12]}, the manifest says {ref.sha256[:12]}"
            raise RemoteDamageError(objects, key, ref.path, what, entry=entry)
    (folder / MANIFEST).write_bytes(entry.sheet.manifest.encode())
    (folder / SEAL).write_text(entry.sheet.seal + "\n")


def put_files(objects: Objects, manifest: Manifest, attempt: str, folder: Path) -> None:
    """Copy the files of a draft to the store, under the name of this attempt."""
    for sha256, ref in {ref.sha256: ref for ref in manifest.files}.items():
        objects.upload(folder / ref.path, f"entries/{manifest.key}/{attempt}/{sha256}")


def remove_files(objects: Objects, manifest: Manifest, attempt: str) -> None:
    """Remove the files of an attempt, after the object that named them."""
    objects.remove(*{_file(manifest.key, attempt, ref) for ref in manifest.files})


class RemoteDamageError(DamageError):
    """An entry of a store with an address is damaged.

    Attributes:
        tag: tag of the object of its manifest.
        entry: the entry, if its manifest could be read.
    """

    def __init__(
        self, objects: Objects, key: str, name: str, fact: str, *, tag: str = "", entry: Published | None = None
    ) -> None:
        super().__init__(f"{objects.address}/entries/{key}", name, fact)
        self.tag, self.entry = tag if entry is None else entry.tag, entry


def _file(key: str, attempt: str, ref: FileRef) -> str:
    return f"entries/{key}/{attempt}/{ref.sha256}"
