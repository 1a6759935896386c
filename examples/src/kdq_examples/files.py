"""Finds the files of the examples, fetches them if need be, and gives only bytes that have the hash in the table.

`KDQ_DATA_DIR` is looked at first, then pooch's cache. Pooch fetches a file that is in neither, into `KDQ_DATA_DIR` if
that folder can be written. The hash decides what is read, so no key needs to hold the folder.
"""

from __future__ import annotations

import functools
import gzip
import os
import tempfile
from pathlib import Path

from kdq_core.api import PluginError
from kdq_examples.reading import Refused, contents, members, verify
from kdq_examples.rebuild import REBUILT
from kdq_examples.table import TABLE, Entry

VARIABLE = "KDQ_DATA_DIR"


def file(name: str) -> Path:
    """Give the path of a file whose content has the hash in the table.

    Args:
        name: folder and file, such as `fashion-mnist/train-images-idx3-ubyte.gz`.

    Raises:
        PluginError: the table has no such file, its content is another, or it cannot be had.
    """
    entry, mine = entry_of(name), own_folder()
    if mine and (mine / name).exists():
        _verified(mine / name, entry)
        return mine / name
    kept = _cache() / name
    if kept.exists():
        try:
            _verified(kept, entry)
            return kept
        except PluginError:
            if not entry.address and name not in REBUILT:
                raise
    return _fetched(entry, mine / name if mine and os.access(mine, os.W_OK) else kept)


def content(name: str) -> bytes:
    """Give the content of a file, inflated if it is a .gz file."""
    return contents(file(name), entry_of(name))


def archive(name: str) -> dict[str, bytes]:
    """Give the content of each file in a zip archive, by its name there."""
    path, entry = file(name), entry_of(name)
    try:
        return dict(members(path, entry))
    except Refused as error:
        raise _told(path, entry, error) from error


def sha256(*names: str) -> str:
    """Give the hashes of files in one line, for a fingerprint: `file` gives no other content, so none is read here."""
    return " ".join(entry_of(name).sha256 for name in names)


def entry_of(name: str) -> Entry:
    """Give the entry of a file in the table.

    Raises:
        PluginError: there is none.
    """
    if name not in TABLE:
        raise PluginError(f"the examples have no file {name!r}; they have: {', '.join(sorted(TABLE))}")
    return TABLE[name]


def own_folder() -> Path | None:
    """Give the folder that `KDQ_DATA_DIR` names.

    Raises:
        PluginError: it is no folder.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    if not folder.is_dir():
        raise PluginError(f"{VARIABLE} is {named!r}, which is no folder; make it, or name the one that has the files")
    return folder


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("kdq-examples"))


def _verified(path: Path, entry: Entry) -> None:
    status = path.stat()
    _verify_once(path, entry, status.st_size, status.st_mtime_ns)


@functools.cache
def _verify_once(path: Path, entry: Entry, size: int, changed: int) -> None:  # noqa: ARG001 - they name the content
    try:
        verify(path, entry)
    except Refused as error:
        raise _told(path, entry, error) from error


def _told(path: Path, entry: Entry, error: Refused) -> PluginError:
    remedy = f"put the file of {entry.source} in its place"
    if entry.address:
        remedy = f"delete it, and KDQ fetches {entry.address}"
    return PluginError(f"'{path}' is not the file {entry.name!r}: {error}; expected: {entry.expected}; {remedy}")


def _fetched(entry: Entry, path: Path) -> Path:
    """Fetch a file into a folder of its own, and move it to `path` once its hash is right."""
    have = f"set {VARIABLE} to the folder that has {entry.name!r}"
    if not entry.address and entry.name not in REBUILT:
        raise PluginError(
            f"{entry.name!r} is not there, and KDQ cannot fetch it, because no published address has these bytes; "
            f"{have} (made from the data of {entry.source}, {entry.licence})"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetching-") as folder:
            got = _made(entry, Path(folder)) if entry.name in REBUILT else _download(entry, Path(folder))
            verify(got, entry)
            got.replace(path)
    except Refused as error:
        raise PluginError(
            f"{entry.address or entry.source} gave another file than {entry.name!r}: {error}; expected: "
            f"{entry.expected}; try again, or {have}"
        ) from error
    except (OSError, ValueError) as error:
        raise PluginError(
            f"{entry.name!r} is not there, and KDQ could not fetch it from {entry.address or entry.source}: {error}; "
            f"{have}, or allow this machine to download it"
        ) from error
    return path


def _download(entry: Entry, folder: Path) -> Path:
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it asks for a `known_hash`; the hash of a .gz file is that of its content
    name = entry.name.rpartition("/")[2]
    return Path(pooch.retrieve(entry.address, known_hash=None, fname=name, path=folder))


def _made(entry: Entry, folder: Path) -> Path:
    published, make = REBUILT[entry.name]
    path = folder / entry.name.rpartition("/")[2]
    path.write_bytes(gzip.compress(make(content(published)), mtime=0))
    return path
