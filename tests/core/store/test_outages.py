"""What KDQ says when it cannot use a store at an address. No text holds a secret."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import uuid
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from kdq_core.errors import KdqError, RecipeError, StoreError, TransientError
from kdq_core.recipe.site import Site
from kdq_core.store import open_store
from kdq_core.store.outages import told
from kdq_core.store.records import Checkpoint
from kdq_core.store.store import Store

KEY = "ab" + "0" * 62
RECORD = Checkpoint(slot="teacher", weights="weights.bin", parameters=3)
CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role, then run again"
)


def at(address: str, home: Path) -> Store:
    return open_store(Site(home=home, store_address=address))


def written(store: Store) -> None:
    with store.draft(KEY) as draft:
        (draft / "weights.bin").write_bytes(b"weights")
        store.commit(draft, stage="train_teacher", key=KEY, parts={}, record=RECORD)


def refused(store: Store) -> KdqError:
    """The error of each way to use the store, which is the same."""
    errors = []
    for use in (store.check, lambda: store.lookup(KEY), lambda: written(store), lambda: list(store.parts("export"))):
        with pytest.raises(KdqError) as caught:
            use()
        errors.append(caught.value)
    assert len({(type(one), str(one)) for one in errors}) == 1
    shown = "".join(traceback.format_exception(errors[0]))
    assert "much-too-secret" not in shown
    return errors[0]


def test_a_missing_bucket_is_said_and_not_made(s3: str, tmp_path: Path) -> None:
    error = refused(at("s3://nobody-made-it/prefix", tmp_path))
    assert (type(error), str(error)) == (
        StoreError,
        "the bucket of the store 's3://nobody-made-it/prefix' does not exist; make it, or correct KDQ_STORE, then run "
        "again",
    )


def test_missing_credentials_are_named_with_their_variables(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = refused(at(s3, tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    assert (type(error), str(error)) == (StoreError, f"there are no credentials for the store {s3!r}; {CREDENTIALS}")


def test_a_network_that_is_away_is_a_passing_failure_and_all_is_well_when_it_is_back(
    s3: str, s3_server: Any, tmp_path: Path
) -> None:
    store = at(s3, tmp_path)
    written(store)
    s3_server.stop()
    try:
        with pytest.raises(TransientError) as caught:
            store.lookup(KEY)
        with pytest.raises(TransientError), store.draft("cd" + KEY[2:]) as draft:
            store.commit(draft, stage="export", key="cd" + KEY[2:], parts={}, record=RECORD)
        assert store.get(KEY).file("weights.bin").read_bytes() == b"weights"
    finally:
        s3_server.start()
    assert str(caught.value) == (
        f"the store {s3!r} does not answer (EndpointConnectionError); check the network and the address, then run "
        "again: finished stages are kept"
    )
    assert store.lookup(KEY) == store.get(KEY)


@pytest.mark.parametrize(
    ("code", "status", "kind", "text"),
    [
        ("SlowDown", 503, TransientError, "the store 's3://b' does not answer (SlowDown); check the network and the "
         "address, then run again: finished stages are kept"),
        ("InternalError", 500, TransientError, "the store 's3://b' does not answer (InternalError); check the network "
         "and the address, then run again: finished stages are kept"),
        ("AccessDenied", 403, StoreError, "the store 's3://b' refuses these credentials (AccessDenied); KDQ must list, "
         "read, write and delete objects there. Correct the credentials, then run again: finished stages are kept"),
        ("MethodNotAllowed", 405, StoreError, "cannot use the store 's3://b': MethodNotAllowed; check KDQ_STORE, then "
         "run again: finished stages are kept"),
    ],
)  # fmt: skip
def test_an_answer_of_s3_is_named_by_its_code(code: str, status: int, kind: type[KdqError], text: str) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    response = {"Error": {"Code": code, "Message": "much-too-secret"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = told("s3://b", translate_boto_error(ClientError(response, "PutObject")))
    assert (type(error), str(error)) == (kind, text)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "much-too-secret"), "cannot use the store 'x://b': No space left on device; check "
         "KDQ_STORE, then run again: finished stages are kept"),
        (ValueError("much-too-secret"), "cannot use the store 'x://b': ValueError; check KDQ_STORE, then run again: "
         "finished stages are kept"),
    ],
)  # fmt: skip
def test_what_a_library_says_is_not_quoted(error: Exception, text: str) -> None:
    assert str(told("x://b", error)) == text


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(RecipeError) as caught:
        at("s3://bucket", tmp_path)
    assert str(caught.value) == (
        "KDQ_STORE is 's3://bucket', and the package that reads s3:// is not installed; install it with "
        "`pip install 'kdq[s3]'`"
    )


def test_an_unknown_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        at("s4://bucket/x", tmp_path)
    assert str(caught.value) == (
        "KDQ_STORE is 's4://bucket/x', and fsspec knows no s4://; allowed: an address such as s3://bucket/prefix or "
        "file:///mnt/share/kdq"
    )


class Careless(MemoryFileSystem):  # type: ignore[misc]
    """A file system that overwrites what it was asked to keep."""

    protocol = "careless"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value)


def test_a_store_without_conditional_writes_is_refused_before_anything_is_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "careless", Careless)
    address = f"careless://{uuid.uuid4().hex}"
    store = at(address, tmp_path)
    for use in (store.check, lambda: written(store), lambda: store.claim(KEY).__enter__()):
        with pytest.raises(StoreError) as caught:
            use()
        assert str(caught.value) == (
            f"the store {address!r} overwrites an object though KDQ asked it not to (no conditional writes), so two "
            "machines could spoil each other's entries; use a server that knows If-None-Match, or unset KDQ_STORE"
        )
    assert store.lookup(KEY) is None


def test_a_drive_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    address = (tmp_path / "drive").as_uri()
    with pytest.raises(StoreError) as caught:
        at(address, tmp_path).check()
    assert str(caught.value) == (
        f"the drive of the store {address!r} has no hard links, with which KDQ writes an entry once only; use a drive "
        "that has them, such as NFS, or unset KDQ_STORE"
    )
