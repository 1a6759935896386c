"""The index of entries by stage: one file `index/<stage>/<key>` for each entry, which holds the parts of its key.

The time of a file is that of the entry. The index only finds entries and explains keys; the entries decide, and KDQ
ignores a file whose entry is gone. If the index is missing, as in a store of an older KDQ, KDQ makes it from the
manifests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kdq_core.store.checks import MANIFEST
from kdq_core.store.hashing import canonical


class Index:
    """The index of the store at `root`; safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / "index"

    def add(self, stage: str, key: str, parts: Mapping[str, Any]) -> None:
        """Add the entry `key` of `stage`. The store calls it before the entry exists, so that no entry is ever missing.

        Raises:
            OSError: the index cannot be written.
        """
        self._make()
        _write(self._folder / _name(stage) / key, parts)

    def drop(self, key: str) -> None:
        """Remove the entry `key` from the index."""
        for file in self._folder.glob(f"*/{key}"):
            file.unlink(missing_ok=True)

    def keys(self, stage: str) -> list[str]:
        """Keys of the entries of `stage`, newest first."""
        found: list[tuple[int, str]] = []
        try:
            self._make()
        except OSError:  # the store cannot be written
            found = [(time, key) for one, key, time, _ in self._scanned() if one == stage]
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder / _name(stage)) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    found.append((file.stat().st_mtime_ns, file.name))
        return [key for _, key in sorted(found, reverse=True)]

    def parts(self, stage: str) -> Iterator[dict[str, Any]]:
        """The parts of the keys of the entries of `stage`, newest first."""
        for key in self.keys(stage):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if (self._root / key[:2] / key).exists():
                    yield self._parts(stage, key)

    def _parts(self, stage: str, key: str) -> dict[str, Any]:
        """Read the parts from the index; from the manifest, if the store has no index and cannot be written."""
        try:
            text = (self._folder / _name(stage) / key).read_bytes()
        except FileNotFoundError:
            return dict(json.loads((self._root / key[:2] / key / MANIFEST).read_bytes())["parts"])
        return dict(json.loads(text))

    def _make(self) -> None:
        """Make the index from the manifests, unless it exists."""
        if self._folder.is_dir() or not self._root.is_dir():
            return
        made = self._root / "drafts" / f"index.{uuid.uuid4().hex}"
        made.mkdir(parents=True)
        try:
            for stage, key, time, parts in self._scanned():
                _write(made / _name(stage) / key, parts)
                os.utime(made / _name(stage) / key, ns=(time, time))
            with contextlib.suppress(OSError):  # another process was first
                made.rename(self._folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _scanned(self) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
        """Stage, key, time and parts of every entry whose manifest can be read."""
        for path in self._root.glob(f"??/*/{MANIFEST}"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                told = json.loads(path.read_bytes())
                yield str(told["stage"]), path.parent.name, path.stat().st_mtime_ns, dict(told["parts"])


def _write(file: Path, parts: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(canonical(parts))


def _name(stage: str) -> str:
    """Name of a stage's folder: the stage's name, with slashes and dots escaped."""
    return quote(stage, safe="").replace(".", "%2E")
