"""Large files are hashed once, unless they changed."""

import os
import time
from pathlib import Path

import pytest

from kdq_core.errors import StoreError
from kdq_core.store import verified
from kdq_core.store.records import Checkpoint
from kdq_core.store.store import Store

KEY = "ab" + "0" * 62
RECORD = Checkpoint(slot="teacher", weights="weights.bin", parameters=3)


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed to be read; files of any size and age are marked."""
    names, whole = list[str](), verified.sha256_file
    monkeypatch.setattr(verified, "sha256_file", lambda path: (names.append(path.name), whole(path))[1])
    monkeypatch.setattr(verified, "LARGE", 7)
    monkeypatch.setattr(verified, "SETTLED", -1.0)
    return names


@pytest.fixture
def store(tmp_path: Path, hashes: list[str]) -> Store:
    made = Store(tmp_path)
    with made.draft(KEY) as draft:
        (draft / "weights.bin").write_bytes(b"weights")
        (draft / "small").write_bytes(b"small")
        made.commit(draft, stage="train_teacher", key=KEY, parts={}, record=RECORD)
    assert hashes == []  # the commit has hashed them itself
    return made


def test_a_large_file_is_hashed_by_the_first_reader_alone_and_a_small_one_by_each(
    store: Store, hashes: list[str]
) -> None:
    store.get(KEY)
    assert hashes == ["small", "weights.bin"]
    Store(store.root).get(KEY)
    assert hashes == ["small", "weights.bin", "small"]


def test_a_changed_byte_is_seen_behind_a_mark_even_with_the_old_time(store: Store) -> None:
    file = store.get(KEY).file("weights.bin")
    before = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"W")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StoreError, match=r"'weights.bin' of the store entry .* is damaged: its sha256 is"):
        store.get(KEY)


def test_another_file_in_its_place_is_hashed(store: Store, hashes: list[str]) -> None:
    file = store.get(KEY).file("weights.bin")
    fresh = file.with_name("fresh")
    fresh.write_bytes(b"weights")
    fresh.replace(file)
    hashes.clear()
    store.get(KEY)
    assert hashes == ["small", "weights.bin"]


@pytest.mark.parametrize("seconds", [3601, -60])
def test_a_mark_counts_for_an_hour(
    store: Store, hashes: list[str], monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    store.get(KEY)
    hashes.clear()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + seconds)
    store.get(KEY)
    assert hashes == ["small", "weights.bin"]


def test_a_file_that_was_written_a_moment_ago_is_not_marked(
    store: Store, hashes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "SETTLED", 2.0)
    store.get(KEY)
    store.get(KEY)
    assert hashes == ["small", "weights.bin"] * 2
    assert list(store.root.glob("verified/*")) == []


def test_marks_that_cannot_be_read_or_written_are_done_without(store: Store, hashes: list[str]) -> None:
    store.get(KEY)
    (marks,) = store.root.glob("verified/*")
    marks.write_text("no JSON")
    hashes.clear()
    store.get(KEY)
    assert hashes == ["small", "weights.bin"]
    marks.unlink()
    marks.parent.rmdir()
    marks.parent.write_text("a file in the way of the folder")
    store.get(KEY)
    assert hashes == ["small", "weights.bin"] * 2


def test_a_removed_entry_leaves_no_mark(store: Store) -> None:
    store.get(KEY)
    assert len(list(store.root.glob("verified/*"))) == 1
    store.discard(KEY)
    assert list(store.root.glob("verified/*")) == []
