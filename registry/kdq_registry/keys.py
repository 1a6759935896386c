"""The key of an encrypted file: from a file, from `KDQ_ENCRYPTION_KEY`, or from the key service of a plug-in."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError, StageError
from kdq_registry.encrypting import KeyOf

if TYPE_CHECKING:
    from kdq_core.plugins.catalog import Catalog

VARIABLE = "KDQ_ENCRYPTION_KEY"
BYTES = 32
HOW = "make one with `openssl rand -hex 32 > FILE`"


def own_key(path: Path | None) -> bytes:
    """Read a key of 256 bits from a file (64 hex digits, or 32 bytes), or from the environment (64 hex digits).

    Raises:
        RecipeError: there is none, or it is no such key.
    """
    if path is not None:
        where = f"the file {str(path)!r}"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RecipeError(f"the key file {str(path)!r} cannot be read ({error.strerror}); {HOW}") from None
    elif VARIABLE in os.environ:
        where, data = f"the variable {VARIABLE}", os.environ[VARIABLE].encode()
    else:
        raise RecipeError(
            f"no key was given; name a file with --key, a key service with --kms, or set {VARIABLE} to 64 hex digits"
        )
    if len(data) != BYTES or path is None:
        try:
            data = bytes.fromhex(data.decode("ascii").strip())
        except ValueError:
            data = b""
    if len(data) != BYTES:
        forms = "64 hex digits, or 32 bytes" if path else "64 hex digits"
        raise RecipeError(f"{where} holds no key of 256 bits ({forms}); {HOW}")
    return data


def new_key(catalog: Catalog, kms: str) -> tuple[bytes, KeyOf]:
    """Make a key for one file, and let the plug-in that knows the key service wrap it.

    Raises:
        RecipeError: no plug-in knows the service.
        StageError: the service refused, or unwraps another key.
    """
    key = secrets.token_bytes(BYTES)
    of = KeyOf(kms=kms, wrapped=_asked(catalog, "kdq_wrap_key", kms=kms, key=key).hex())
    if unwrapped(catalog, of) != key:
        raise StageError(f"the key service {kms!r} unwraps another key than it wrapped; mend its plug-in")
    return key, of


def unwrapped(catalog: Catalog, of: KeyOf) -> bytes:
    """Let the key service that a file names unwrap its key.

    Raises:
        RecipeError: no plug-in knows the service.
        StageError: the service refused, or gave no key of 256 bits.
    """
    key = _asked(catalog, "kdq_unwrap_key", kms=of.kms, wrapped=bytes.fromhex(of.wrapped))
    if len(key) != BYTES:
        raise StageError(f"the key service {of.kms!r} gave {len(key)} bytes; a key has {BYTES}")
    return key


def _asked(catalog: Catalog, hook: str, **given: object) -> bytes:
    reasons = []
    for distribution, answers, reason in catalog.each(hook, **given):
        if reason:
            reasons.append(reason)
        for answer in answers:
            if isinstance(answer, bytes):
                return answer
            if answer is not None:
                reasons.append(f"plug-in {distribution!r} gave {type(answer).__name__} in {hook}, not bytes")
    if reasons:
        raise StageError(f"the key service {given['kms']!r} refused: {'; '.join(reasons)}")
    raise RecipeError(
        f"no plug-in knows the key service {given['kms']!r}; install one that implements {hook!r} for this name"
        f"{catalog.quarantine_hint()}"
    )
