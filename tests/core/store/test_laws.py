"""What every store keeps: the local one, and those at an address, in memory, on a drive and on S3."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest

from kdq_core.errors import StageError, StoreError
from kdq_core.recipe.site import Site
from kdq_core.store import open_store
from kdq_core.store.listing import entries
from kdq_core.store.records import Checkpoint
from kdq_core.store.remote import RemoteStore
from kdq_core.store.store import Entry, Store

KEY, OTHER = "ab" + "0" * 62, "cd" + "1" * 62
RECORD = Checkpoint(slot="teacher", weights="sub/weights.bin", parameters=3)


@pytest.fixture(params=["local", "memory", "drive", "s3"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    addresses = {
        "local": lambda: None,
        "memory": lambda: f"memory://{uuid.uuid4().hex}",
        "drive": lambda: (tmp_path / "drive").as_uri(),
        "s3": lambda: request.getfixturevalue("s3"),
    }
    made = Site(home=tmp_path / "home")
    return made.model_copy(update={"store_address": addresses[request.param]()})  # `memory` serves tests alone


@pytest.fixture
def store(site: Site) -> Store:
    return open_store(site)


def written(store: Store, key: str = KEY, content: bytes = b"weights", stage: str = "train_teacher") -> Entry:
    with store.draft(key) as draft:
        (draft / "sub").mkdir()
        (draft / "sub" / "weights.bin").write_bytes(content)
        (draft / "empty").touch()
        return store.commit(draft, stage=stage, key=key, parts={"of": key[:2]}, record=RECORD)


def spoil(store: Store, entry: Entry, content: bytes | None) -> str:
    """Change or remove a file of an entry where the store keeps it; gives the name of the entry in messages."""
    if not isinstance(store, RemoteStore):
        path = entry.file("sub/weights.bin")
        path.unlink() if content is None else path.write_bytes(content)
        return str(entry.folder)
    (name,) = (n for n in store.objects.listed("entries") if n.endswith(entry.sha256("sub/weights.bin")))
    store.objects.remove(f"entries/{name}")
    if content is not None:
        store.objects.write(f"entries/{name}", content)
    Store(store.root).discard(entry.manifest.key)  # a whole copy in the read cache is as good as the entry
    return f"{store.objects.address}/entries/{entry.manifest.key}"


def test_an_entry_is_found_again_with_its_record_and_files(store: Store, site: Site) -> None:
    assert store.lookup(KEY) is None
    assert store.peek(KEY) is None
    entry = written(store)
    for one in (store, open_store(site)):
        again = one.get(KEY)
        assert again == entry == one.lookup(KEY)
        assert again.record == RECORD
        assert again.file("sub/weights.bin").read_bytes() == b"weights"
        assert one.peek(KEY) == entry.digest
        assert one.damage(KEY) is None
        assert one.manifest(KEY) == entry.manifest


def test_the_digest_is_of_the_content_not_of_the_request(store: Store) -> None:
    assert written(store).digest == written(store, OTHER).digest
    store.discard(OTHER)
    assert written(store, OTHER, b"other").digest != store.get(KEY).digest


def test_a_draft_that_is_not_committed_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with store.draft(KEY) as draft:
        (draft / "half").write_text("half")
    with store.draft(KEY) as draft:
        (draft / "link").symlink_to("nowhere")
        with pytest.raises(StageError):
            store.commit(draft, stage="distill", key=KEY, parts={}, record=RECORD)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert store.lookup(KEY) is None


def test_the_second_of_two_writers_gets_the_first_ones_entry(store: Store) -> None:
    first = written(store, content=b"first")
    second = written(store, content=b"second")
    assert second.digest == first.digest
    assert store.get(KEY).file("sub/weights.bin").read_bytes() == b"first"
    assert [(one.key, one.stage) for one in entries(store)] == [(KEY, "train_teacher")]
    if isinstance(store, RemoteStore):  # nothing is left of the second attempt: a manifest and two files
        assert len(store.objects.listed("entries")) == 3


@pytest.mark.parametrize(
    ("content", "fact"),
    [(b"weightz", "its sha256 is 77231fd145ba, the manifest says 9a129038d9a0"), (None, "it is missing")],
    ids=["changed", "missing"],
)
def test_a_damaged_entry_is_told_removed_and_written_anew(store: Store, content: bytes | None, fact: str) -> None:
    told, entry = list[str](), written(store)
    assert store.lookup_or_discard(KEY, told.append) == entry
    assert told == []
    where = spoil(store, entry, content)
    said = f"the file 'sub/weights.bin' of the store entry {where!r} is damaged: {fact}"
    assert store.damage(KEY) == said
    with pytest.raises(StoreError) as caught:
        store.lookup(KEY)
    assert str(caught.value) == f"{said}; KDQ computes it anew"
    with pytest.raises(StoreError) as caught:
        store.get(KEY)
    assert str(caught.value) == f"{said}; run again, and KDQ computes it anew"
    assert store.lookup_or_discard(KEY, told.append) is None
    assert told == [f"{said}; KDQ computes it anew"]
    assert store.lookup_or_discard(KEY, told.append) is None
    assert len(told) == 1
    assert list(entries(store)) == []
    if isinstance(store, RemoteStore):
        assert store.objects.listed("entries") == store.objects.listed("index") == {}
    assert written(store) == store.get(KEY)


def test_a_damaged_entry_is_written_over_at_the_commit_too(store: Store) -> None:
    spoil(store, written(store), b"weightz")
    assert written(store, content=b"anew") == store.get(KEY)
    assert store.lookup(KEY) == store.get(KEY)


def test_a_discarded_entry_is_gone_and_the_others_of_its_stage_are_found(store: Store) -> None:
    written(store)
    written(store, OTHER)
    store.discard(OTHER)
    store.discard(OTHER)
    assert store.lookup(OTHER) is None
    with pytest.raises(StoreError) as caught:
        store.get(OTHER)
    assert str(caught.value) == f"the store has no entry {OTHER!r}; run the recipe again to compute it"
    assert [one.key for one in store.manifests("train_teacher")] == [KEY]
    assert list(store.parts("train_teacher")) == [{"of": "ab"}]
    assert list(store.parts("distill")) == list(store.manifests("distill")) == []


def test_an_entry_that_is_in_use_stays_and_another_goes(store: Store, site: Site) -> None:
    written(store)
    (one,) = entries(store)
    assert (one.key, one.bytes > len(b"weights"), one.used >= one.made > 0) == (KEY, True, True)
    assert not store.discard_unused(KEY, one.used - 1)
    assert store.get(KEY)
    assert open_store(site).discard_unused(KEY, time.time() + 60)
    assert store.lookup(KEY) is None


def test_a_claim_has_one_holder_among_the_processes_of_a_home(store: Store, site: Site) -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    told = list[str]()
    with store.claim(KEY) as claim:
        assert claim.descriptors
        with open_store(site).claim(OTHER):
            pass
        with pytest.raises(StopError), open_store(site).claim(KEY, on_wait=lambda: told.append("waits"), check=stop):
            pytest.fail("two hold the same claim")
    assert told == ["waits"]
    with pytest.raises(StopError), store.claim(KEY, on_wait=lambda: pytest.fail("nobody holds it")):
        stop()
    with open_store(site).claim(KEY, on_wait=lambda: pytest.fail("nobody holds it")):
        pass
    if isinstance(store, RemoteStore):
        assert store.objects.listed("claims") == {}
