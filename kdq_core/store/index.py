"""The entries of each stage: one empty file `index/<stage>/<key>` an entry, whose time is that of its writing.

It only finds entries; the entries say what is true. A file whose entry is gone is passed over. Where the index is
missing, as in a store of an older KDQ, it is made from the manifests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from kdq_core.store.checks import MANIFEST


class Index:
    """The index of the store at `root`; safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / "index"

    def add(self, stage: str, key: str) -> None:
        """Let `stage` have an entry `key`; called before the entry is there, so that none is ever missed.

        Raises:
            OSError: nothing can be written there.
        """
        self._make()
        folder = self._folder / _name(stage)
        folder.mkdir(exist_ok=True)
        (folder / key).touch()

    def drop(self, key: str) -> None:
        """Let no stage have an entry `key`."""
        for file in self._folder.glob(f"*/{key}"):
            file.unlink(missing_ok=True)

    def keys(self, stage: str) -> list[str]:
        """Keys of the entries of `stage`, newest first."""
        found: list[tuple[int, str]] = []
        try:
            self._make()
        except OSError:  # a store that cannot be written
            found = [(time, key) for one, key, time in self._scanned() if one == stage]
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder / _name(stage)) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    found.append((file.stat().st_mtime_ns, file.name))
        return [key for _, key in sorted(found, reverse=True)]

    def _make(self) -> None:
        """Make the index from the manifests, unless there is one."""
        if self._folder.is_dir() or not self._root.is_dir():
            return
        made = self._root / "drafts" / f"index.{uuid.uuid4().hex}"
        made.mkdir(parents=True)
        try:
            for stage, key, time in self._scanned():
                folder = made / _name(stage)
                folder.mkdir(exist_ok=True)
                (folder / key).touch()
                os.utime(folder / key, ns=(time, time))
            with contextlib.suppress(OSError):  # another process was first
                made.rename(self._folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _scanned(self) -> Iterator[tuple[str, str, int]]:
        """Stage, key and time of every entry whose manifest can be read."""
        for path in self._root.glob(f"??/*/{MANIFEST}"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                yield str(json.loads(path.read_bytes())["stage"]), path.parent.name, path.stat().st_mtime_ns


def _name(stage: str) -> str:
    """Name of a stage's folder: no slash, no dot, else as it is."""
    return quote(stage, safe="").replace(".", "%2E")
