"""What went wrong between KDQ and a store behind an address, in words.

No text quotes a server or a library: it might quote a password.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from kdq_core.errors import KdqError, RecipeError, StoreError, TransientError
from kdq_core.failures import classes_of, failure_of, wrapped

NO_CREDENTIALS = frozenset({
    "botocore.exceptions.NoCredentialsError", "botocore.exceptions.PartialCredentialsError",
    "botocore.exceptions.ProfileNotFound", "botocore.exceptions.ConfigNotFound",
})  # fmt: skip
LATER = frozenset({
    "SlowDown", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "ServiceUnavailable",
    "InternalError",
})  # fmt: skip
"""Codes of S3 after which the same request may succeed."""
KEPT = "finished stages are kept"
EXTRAS = {"s3": "kdq[s3]", "s3a": "kdq[s3]"}
"""The extra of KDQ that installs the file system of a protocol."""


class Answer(NamedTuple):
    """What a server answered: S3's code, such as `NoSuchBucket`, and the HTTP status; empty and 0 if it did not."""

    code: str = ""
    status: int = 0


def answer_of(error: BaseException) -> Answer:
    """The answer of the server that `error`, or an error that it wraps, stands for."""
    for one in wrapped(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            return Answer(code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)))
    return Answer()


@contextlib.contextmanager
def reached(address: str) -> Iterator[None]:
    """Turn what a file system raises into one of KDQ's errors; each file system has classes of its own."""
    try:
        yield
    except KdqError:
        raise
    except Exception as error:
        raise told(address, error) from error


def told(address: str, error: BaseException) -> KdqError:
    """The error in KDQ's words."""
    code, status = answer_of(error)
    kinds = set().union(*map(classes_of, wrapped(error)))
    if code == "NoSuchBucket":
        return StoreError(
            f"the bucket of the store {address!r} does not exist; make it, or correct KDQ_STORE, then run again"
        )
    if kinds & NO_CREDENTIALS:
        return StoreError(
            f"there are no credentials for the store {address!r}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, or give this machine a role, then run again"
        )
    if code in LATER or status >= 500 or status == 429 or failure_of(error) is not None:
        return TransientError(
            f"the store {address!r} does not answer ({_fact(error)}); check the network and the address, then run "
            f"again: {KEPT}"
        )
    if status in (401, 403) or (not status and isinstance(error, PermissionError)):
        return StoreError(
            f"the store {address!r} refuses these credentials ({_fact(error)}); KDQ must list, read, write and delete "
            f"objects there. Correct the credentials, then run again: {KEPT}"
        )
    return StoreError(f"cannot use the store {address!r}: {_fact(error)}; check KDQ_STORE, then run again: {KEPT}")


def unknown(address: str, error: BaseException) -> RecipeError:
    """The error for an address whose file system fsspec cannot load."""
    protocol = address.partition("://")[0]
    if isinstance(error, ImportError):
        install = EXTRAS.get(protocol)
        return RecipeError(
            f"KDQ_STORE is {address!r}, and the package that reads {protocol}:// is not installed; install it "
            + (f"with `pip install '{install}'`" if install else "(fsspec's documentation names it)")
        )
    return RecipeError(
        f"KDQ_STORE is {address!r}, and fsspec knows no {protocol}://; allowed: an address such as "
        "s3://bucket/prefix or file:///mnt/share/kdq"
    )


def unconditional(address: str) -> StoreError:
    """The error for a store that overwrites what KDQ asked it to keep."""
    return StoreError(
        f"the store {address!r} overwrites an object though KDQ asked it not to (no conditional writes), so two "
        "machines could spoil each other's entries; use a server that knows If-None-Match, or unset KDQ_STORE"
    )


def unlinked(address: str) -> StoreError:
    """The error for a drive without hard links."""
    return StoreError(
        f"the drive of the store {address!r} has no hard links, with which KDQ writes an entry once only; use a drive "
        "that has them, such as NFS, or unset KDQ_STORE"
    )


def _fact(error: BaseException) -> str:
    """A code, the meaning of an `errno`, or the name of a class."""
    code, _ = answer_of(error)
    if code:
        return code
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return type(error).__name__
