"""Reads files that may be damaged or hostile: nothing inflates beyond what the table says, and no name escapes."""

from __future__ import annotations

import gzip
import hashlib
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from kdq_examples.table import Entry

CHUNK = 1 << 20


class Refused(Exception):  # noqa: N818 - the caller makes an error of KDQ of it
    """The bytes are not those of the table; the text says why."""


def verify(path: Path, entry: Entry) -> None:
    """Compare size and hash of a file, of a .gz file those of its content, with the table.

    Raises:
        Refused: they differ, or the file cannot be read.
    """
    found, size = hashlib.sha256(), 0
    for chunk in _chunks(path, entry):
        found.update(chunk)
        size += len(chunk)
    if size < entry.size:
        raise Refused(f"it ends after {size:,} bytes, so it is truncated")
    if found.hexdigest() != entry.sha256:
        raise Refused(f"its sha256 is {found.hexdigest()}, so it was altered")


def contents(path: Path, entry: Entry) -> bytes:
    """Read a whole file, inflated if it is a .gz file.

    Raises:
        Refused: it is longer than the table says, or cannot be read.
    """
    return b"".join(_chunks(path, entry))


def members(path: Path, entry: Entry) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file in a zip archive, after all names and sizes were looked at.

    Raises:
        Refused: a name leads out of the archive, a member is a link, the members inflate to more than the table says,
            or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
            for member in listed:
                _refuse_escape(member)
            total = sum(member.file_size for member in listed)
            if total > entry.inflated:
                raise Refused(f"its members inflate to {total:,} bytes instead of {entry.inflated:,}")
            for member in listed:
                if not member.is_dir():
                    yield member.filename, archive.read(member)  # zipfile stops at the size that was counted above
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise Refused(f"it is no sound zip archive ({error})") from error


def _chunks(path: Path, entry: Entry) -> Iterator[bytes]:
    """Yield the bytes of a file, inflated if it is a .gz file, up to the size in the table."""
    size = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as data:
            while chunk := data.read(CHUNK):
                size += len(chunk)
                if size > entry.size:
                    raise Refused(f"it has more than {entry.size:,} bytes")
                yield chunk
    except EOFError as error:
        raise Refused(f"it ends after {size:,} bytes, so it is truncated") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Refused(f"it is no sound gzip file ({error})") from error


def _refuse_escape(member: zipfile.ZipInfo) -> None:
    name = PurePosixPath(member.filename.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or ":" in "".join(name.parts[:1]):
        raise Refused(f"its member {member.filename!r} leads out of the archive")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise Refused(f"its member {member.filename!r} is a link")
