"""The atomic steps of `Objects` on S3, on a drive and in memory; which address means which."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdq_core.locks import held
from kdq_core.store.drafts import fsync
from kdq_core.store.hashing import sha256_of
from kdq_core.store.objects import Objects
from kdq_core.store.outages import answer_of, reached, unknown, unlinked

FRESH = ".fresh"
"""Folder of a drive for objects that are being written; a rename or a link puts them in their place."""
LOCK_SECONDS = 60.0
_MEMORY = threading.RLock()


def objects_at(address: str) -> Objects:
    """The objects below an address.

    Raises:
        RecipeError: fsspec does not know its protocol, or the package for it is missing.
    """
    from fsspec.core import url_to_fs

    address = address.rstrip("/")
    try:
        fs, root = url_to_fs(address, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise unknown(address, error) from error
    kinds = {"s3": S3, "s3a": S3, "file": Drive, "local": Drive, "memory": Memory}
    return kinds.get(address.partition("://")[0], Objects)(address, fs, root)


class S3(Objects):
    """Objects of S3: `If-None-Match: *` and `If-Match` make the steps atomic on the server; the tag is the ETag.

    A botocore that does not know these conditions would drop them silently; `pyproject.toml` asks for one that does.
    """

    def read(self, name: str) -> tuple[bytes, str] | None:
        """See `Objects.read`; content and tag are of one answer."""
        from fsspec.asyn import sync

        async def both() -> tuple[bytes, str]:
            answer = await self._fs._call_s3("get_object", **self._place(name))
            async with answer["Body"] as body:
                return await body.read(), str(answer["ETag"])

        with reached(self.address), _unless(404):
            return sync(self._fs.loop, both)  # type: ignore[no-any-return]
        return None

    def create(self, name: str, content: bytes) -> str | None:
        """See `Objects.create`."""
        with reached(self.address), _unless(412):
            return self._put(name, content, IfNoneMatch="*")
        return None

    def swap(self, name: str, content: bytes | None, tag: str) -> str | None:
        """See `Objects.swap`."""
        with reached(self.address), _unless(404, 412):
            if content is not None:
                return self._put(name, content, IfMatch=tag)
            self._fs.call_s3("delete_object", **self._place(name), IfMatch=tag)
            return ""
        return None

    def _put(self, name: str, content: bytes, **condition: str) -> str:
        return str(self._fs.call_s3("put_object", **self._place(name), Body=content, **condition)["ETag"])

    def _place(self, name: str) -> dict[str, Any]:
        bucket, key, _ = self._fs.split_path(self._at(name))
        return {"Bucket": bucket, "Key": key}

    def _parent(self, name: str) -> None:
        """S3 has no folders."""


class Drive(Objects):
    """Files of a drive that several machines mount: a hard link is made once only, a lock guards `swap`."""

    def create(self, name: str, content: bytes) -> str | None:
        """See `Objects.create`."""
        with reached(self.address), self._fresh() as fresh:
            fresh.write_bytes(content)
            fsync(fresh)
            try:
                self._linked(fresh, name)
            except FileExistsError:
                return None
            except OSError as error:
                if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise unlinked(self.address) from error
                raise
        return sha256_of(content)

    def swap(self, name: str, content: bytes | None, tag: str) -> str | None:
        """See `Objects.swap`."""
        with reached(self.address), held(Path(self._root) / "swap.lock", seconds=LOCK_SECONDS):
            return super().swap(name, content, tag)

    def write(self, name: str, content: bytes) -> None:
        """See `Objects.write`."""
        with reached(self.address), self._fresh() as fresh:
            fresh.write_bytes(content)
            self._moved(fresh, name)

    def upload(self, file: Path, name: str) -> None:
        """See `Objects.upload`."""
        with reached(self.address), self._fresh() as fresh:
            shutil.copyfile(file, fresh)
            self._moved(fresh, name)

    def _linked(self, fresh: Path, name: str) -> None:
        path = Path(self._at(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(fresh, path)
        fsync(path.parent)

    def _moved(self, fresh: Path, name: str) -> None:
        path = Path(self._at(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        fsync(fresh)
        fresh.replace(path)

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[Path]:
        folder = Path(self._root) / FRESH
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / uuid.uuid4().hex
        try:
            yield fresh
        finally:
            fresh.unlink(missing_ok=True)


class Memory(Objects):
    """Objects in the memory of this process, for tests."""

    def create(self, name: str, content: bytes) -> str | None:
        """See `Objects.create`."""
        with _MEMORY:
            return super().create(name, content)

    def swap(self, name: str, content: bytes | None, tag: str) -> str | None:
        """See `Objects.swap`."""
        with _MEMORY:
            return super().swap(name, content, tag)


@contextlib.contextmanager
def _unless(*statuses: int) -> Iterator[None]:
    """Pass over an error with one of these statuses of HTTP; a bucket that is not there stays an error."""
    try:
        yield
    except OSError as error:
        code, status = answer_of(error)
        if status not in statuses or code == "NoSuchBucket":
            raise
