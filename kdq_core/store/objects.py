"""Objects below an fsspec address, with the atomic steps that a store for several machines needs.

An object is written whole or not at all. `create` writes it only where there is none, `swap` only over the content that
the caller saw. S3 and a drive (`file://`) do both in one step, `memory://` within one process. Other file systems do
what fsspec's `mode="create"` does there; on those a `swap` may lose against another at the same moment.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kdq_core.store.hashing import sha256_of
from kdq_core.store.outages import answer_of, reached, unconditional

MARKER = "kdq-store.json"
"""KDQ writes it once, and asks each time not to overwrite it: so KDQ knows that the store can be told so."""
NO_TAG = '"00000000000000000000000000000000"'
"""The tag of no content."""


class Seen(NamedTuple):
    """An object in a listing: its size in bytes, and when it was written, in seconds since 1970."""

    bytes: int
    written: float


class Objects:
    """Objects by name below an address, in any file system of fsspec.

    Every method raises a `StoreError`, or a `TransientError` if another try may succeed.
    """

    def __init__(self, address: str, fs: Any, root: str) -> None:
        self.address = address
        self._fs, self._root, self._checked = fs, root.rstrip("/"), False

    def check(self) -> None:
        """Refuse a store that cannot be written, or that overwrites what it must not; asks the store once."""
        if self._checked:
            return
        content = b'{"format": 1}\n'
        again = self.create(MARKER, content) and self.create(MARKER, content)
        if again or self.swap(MARKER, content, NO_TAG) is not None:
            raise unconditional(self.address)
        self._checked = True

    def read(self, name: str) -> tuple[bytes, str] | None:
        """The content of an object, and its tag for `swap`; `None` if there is none."""
        with reached(self.address), _missing():
            content = bytes(self._fs.cat_file(self._at(name)))
            return content, sha256_of(content)
        return None

    def create(self, name: str, content: bytes) -> str | None:
        """Write a new object, and give its tag; `None` if there is one already."""
        with reached(self.address), contextlib.suppress(FileExistsError):
            self._parent(name)
            self._fs.pipe_file(self._at(name), content, mode="create")
            return sha256_of(content)
        return None

    def swap(self, name: str, content: bytes | None, tag: str) -> str | None:
        """Write over an object, or remove it, if its tag is still `tag`; gives the new tag, or `None` if it is another.

        Args:
            name: the object.
            content: what to write; `None` removes the object.
            tag: of the content that the caller saw.
        """
        found = self.read(name)
        if found is None or found[1] != tag:
            return None
        if content is None:
            self.remove(name)
            return ""
        self.write(name, content)
        return sha256_of(content)

    def write(self, name: str, content: bytes) -> None:
        """Write an object, over what is there."""
        with reached(self.address):
            self._parent(name)
            self._fs.pipe_file(self._at(name), content)

    def upload(self, file: Path, name: str) -> None:
        """Copy a file to an object."""
        with reached(self.address):
            self._parent(name)
            self._fs.put_file(str(file), self._at(name))

    def download(self, name: str, file: Path) -> bool:
        """Copy an object to a file; `False` if there is no such object."""
        with reached(self.address), _missing():
            self._fs.get_file(self._at(name), str(file))
            return True
        return False

    def listed(self, folder: str) -> dict[str, Seen]:
        """All objects below a folder, by name in it."""
        with reached(self.address), _missing():
            found = self._fs.find(self._at(folder), detail=True)
            start = len(self._at(folder)) + 1
            return {
                path[start:]: Seen(int(facts["size"] or 0), _written(facts))
                for path, facts in found.items() if len(path) > start
            }  # fmt: skip
        return {}

    def seen(self, name: str) -> Seen | None:
        """Size and time of an object; `None` if there is none."""
        with reached(self.address), _missing():
            facts = self._fs.info(self._at(name))
            return Seen(int(facts["size"] or 0), _written(facts))
        return None

    def remove(self, *names: str) -> None:
        """Remove objects; those that are not there are as good as removed."""
        for name in names:
            with reached(self.address), _missing():
                self._fs.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _parent(self, name: str) -> None:
        """Make the folder of an object, as fsspec's own `put_file` does."""
        self._fs.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)


@contextlib.contextmanager
def _missing() -> Iterator[None]:
    """Pass over an object that is not there; a bucket that is not there stays an error."""
    try:
        yield
    except FileNotFoundError as error:
        if answer_of(error).code == "NoSuchBucket":
            raise


def _written(facts: dict[str, Any]) -> float:
    found = facts.get("LastModified") or facts.get("mtime") or facts.get("created") or facts.get("last_modified") or 0.0
    return found.timestamp() if isinstance(found, datetime.datetime) else float(found)
