"""Encrypt a model file for a device: AES-256-GCM in chunks, so that memory holds one chunk.

Each chunk has a nonce of its own: a random prefix of the file, the chunk's number, and whether it is the last one (the
STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár 2015). So nobody can change, drop, move or cut off a chunk
unnoticed. A file begins with one line of JSON that names its key service, if it has one; every chunk is bound to it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pydantic import Field, ValidationError

from kdq_core.errors import RecipeError, StageError
from kdq_core.frozen import Frozen
from kdq_core.store.hashing import canonical

MAGIC = b"KDQ-AES-256-GCM-1\n"
PREFIX, CHUNK, TAG, LINE = 7, 1 << 20, 16, 1 << 16


class KeyOf(Frozen):
    """Where the key of an encrypted file is: with its owner, or wrapped by a key service (both fields are filled)."""

    kms: str = ""
    wrapped: str = Field(default="", pattern=r"^([0-9a-f]{2})*$")


def encrypt(source: Path, to: Path, key: bytes, of: KeyOf = KeyOf()) -> None:  # noqa: B008 - frozen
    """Encrypt a file; `to` appears when it is complete.

    Args:
        source: the file to read.
        to: the file to write.
        key: 32 bytes.
        of: stands in the file, in the clear.

    Raises:
        RecipeError: `source` cannot be read, or `to` exists.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher, prefix = AESGCM(key), secrets.token_bytes(PREFIX)
    head = MAGIC + canonical(of.model_dump()) + b"\n"

    def parts(file: BinaryIO) -> Iterator[bytes]:
        yield head + prefix
        for number, last, chunk in _chunks(file, CHUNK):
            yield cipher.encrypt(_nonce(prefix, number, last), chunk, head)

    _write(source, to, parts)


def decrypt(source: Path, to: Path, key: bytes) -> None:
    """Decrypt a file; `to` appears when every chunk was authentic.

    Raises:
        RecipeError: `source` cannot be read, or `to` exists.
        StageError: `source` is no encrypted file, or was changed or cut off, or the key is another.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher = AESGCM(key)

    def parts(file: BinaryIO) -> Iterator[bytes]:
        head, _ = _head(source, file)
        prefix = file.read(PREFIX)
        for number, last, chunk in _chunks(file, CHUNK + TAG):
            try:
                yield cipher.decrypt(_nonce(prefix, number, last), chunk, head)
            except InvalidTag:
                raise StageError(
                    f"{str(source)!r} cannot be decrypted: the key is another, or the file was changed or cut off "
                    f"(chunk {number + 1}); nothing was written"
                ) from None

    _write(source, to, parts)


def key_of(source: Path) -> KeyOf:
    """Read where the key of an encrypted file is.

    Raises:
        RecipeError: `source` cannot be read.
        StageError: `source` is no encrypted file.
    """
    try:
        with source.open("rb") as file:
            return _head(source, file)[1]
    except OSError as error:
        raise RecipeError(f"{str(source)!r} cannot be opened ({error.strerror}); name a file that can") from None


def _head(source: Path, file: BinaryIO) -> tuple[bytes, KeyOf]:
    magic, line = file.read(len(MAGIC)), file.readline(LINE)
    try:
        found = KeyOf.model_validate_json(line)
    except ValidationError:
        found = None
    if magic != MAGIC or found is None:
        raise StageError(f"{str(source)!r} was not encrypted by `kdq encrypt`; name such a file")
    return magic + line, found


def _chunks(file: BinaryIO, size: int) -> Iterator[tuple[int, bool, bytes]]:
    """The chunks of a file with their numbers, and which is the last one; an empty file has one empty chunk."""
    number, chunk = 0, file.read(size)
    while True:
        following = file.read(size)
        yield number, not following, chunk
        if not following:
            return
        number, chunk = number + 1, following


def _nonce(prefix: bytes, number: int, last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + bytes([last])


def _write(source: Path, to: Path, parts: object) -> None:
    if to.exists():
        raise RecipeError(f"{str(to)!r} is there already; name another file, or remove it")
    beside = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
    try:
        with source.open("rb") as file, beside.open("wb") as out:
            for part in parts(file):  # type: ignore[operator]
                out.write(part)
        os.replace(beside, to)
    except OSError as error:
        raise RecipeError(f"{error.filename!r} cannot be opened ({error.strerror}); name a file that can") from None
    finally:
        beside.unlink(missing_ok=True)
