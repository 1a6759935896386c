"""Encrypt a model file for a device: AES-256-GCM in chunks, so that memory holds one chunk.

Each chunk has a nonce of its own: a random prefix of the file, the chunk's number, and whether it is the last one (the
STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár 2015). So nobody can change, drop, move or cut off a chunk
unnoticed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kdq_core.errors import RecipeError, StageError

MAGIC = b"KDQ-AES-256-GCM-1\n"
PREFIX, CHUNK, TAG = 7, 1 << 20, 16
KEY_BYTES = 32
HOW = "make one with `openssl rand -hex 32 > FILE`"


def read_key(path: Path) -> bytes:
    """Read a key of 256 bits: 64 hex digits, or 32 bytes.

    Raises:
        RecipeError: the file cannot be read, or holds no such key.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"the key file {str(path)!r} cannot be read ({error.strerror}); {HOW}") from None
    if len(data) != KEY_BYTES:
        try:
            data = bytes.fromhex(data.decode("ascii").strip())
        except ValueError:
            data = b""
    if len(data) != KEY_BYTES:
        raise RecipeError(f"the file {str(path)!r} holds no key of 256 bits (64 hex digits, or 32 bytes); {HOW}")
    return data


def encrypt(source: Path, to: Path, key: bytes) -> None:
    """Encrypt a file; `to` appears when it is complete.

    Raises:
        RecipeError: `source` cannot be read, or `to` exists.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher, prefix = AESGCM(key), secrets.token_bytes(PREFIX)

    def parts(file: BinaryIO) -> Iterator[bytes]:
        yield MAGIC + prefix
        for number, last, chunk in _chunks(file, CHUNK):
            yield cipher.encrypt(_nonce(prefix, number, last), chunk, MAGIC)

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
        if file.read(len(MAGIC)) != MAGIC:
            raise StageError(f"{str(source)!r} was not encrypted by `kdq encrypt`; name such a file")
        prefix = file.read(PREFIX)
        for number, last, chunk in _chunks(file, CHUNK + TAG):
            try:
                yield cipher.decrypt(_nonce(prefix, number, last), chunk, MAGIC)
            except InvalidTag:
                raise StageError(
                    f"{str(source)!r} cannot be decrypted: the key is another, or the file was changed or cut off "
                    f"(chunk {number + 1}); nothing was written"
                ) from None

    _write(source, to, parts)


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
