"""The entries of a stage are found without reading all others."""

import os
import shutil
from pathlib import Path

import pytest

from kdq_core.store.index import Index
from kdq_core.store.records import Checkpoint
from kdq_core.store.store import Store

RECORD = Checkpoint(slot="teacher", weights="weights.bin", parameters=3)


def key(number: int) -> str:
    return f"{number:064x}"


def written(store: Store, number: int, stage: str) -> None:
    with store.draft(key(number)) as draft:
        store.commit(draft, stage=stage, key=key(number), parts={"number": number}, record=RECORD)
    marker = next(store.root.glob(f"index/*/{key(number)}"))
    os.utime(marker, (number, number))
    os.utime(store.folder(key(number)) / "manifest.json", (number, number))


def numbers(store: Store, stage: str) -> list[int]:
    return [parts["number"] for parts in store.parts(stage)]


def read(store: Store, stage: str) -> list[int]:
    return [int(manifest.key, 16) for manifest in store.manifests(stage)]


def test_entries_of_a_stage_are_given_newest_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number, stage in ((1, "a"), (3, "a"), (2, "a"), (4, "b/../c.d"), (5, "..")):
        written(store, number, stage)
    assert numbers(store, "a") == read(store, "a") == [3, 2, 1]
    assert numbers(store, "b/../c.d") == [4]
    assert numbers(store, "..") == [5]
    assert numbers(store, "c.d") == []


def test_a_removed_entry_and_one_removed_by_hand_are_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in (1, 2, 3):
        written(store, number, "a")
    store.discard(key(2))
    assert [path.name for path in tmp_path.glob("index/a/*") if path.name == key(2)] == []
    shutil.rmtree(store.folder(key(3)))
    assert numbers(store, "a") == read(store, "a") == [1]


def test_a_damaged_manifest_is_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in (1, 2):
        written(store, number, "a")
    (store.folder(key(2)) / "manifest.json").write_text("{}")
    assert read(store, "a") == [1]


@pytest.mark.parametrize("first", ["read", "commit"])
def test_a_store_without_an_index_gets_one(tmp_path: Path, first: str) -> None:
    store = Store(tmp_path)
    for number in (1, 3, 2):
        written(store, number, "a")
    shutil.rmtree(tmp_path / "index")
    (store.folder(key(3)) / "manifest.json").write_text("no JSON")
    if first == "commit":
        written(store, 4, "a")
    assert numbers(store, "a") == ([4, 2, 1] if first == "commit" else [2, 1])
    assert {path.name for path in (tmp_path / "index" / "a").iterdir()} >= {key(1), key(2)}
    assert list((tmp_path / "drafts").iterdir()) == []


def test_a_store_that_cannot_be_written_is_read_without_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    for number, stage in ((1, "a"), (2, "a"), (3, "b")):
        written(store, number, stage)
    shutil.rmtree(tmp_path / "index")

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert numbers(store, "a") == read(store, "a") == [2, 1]
    assert not (tmp_path / "index").exists()


def test_what_keys_were_made_of_is_read_from_the_index_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in (1, 2):
        written(store, number, "a")
        (store.folder(key(number)) / "manifest.json").write_text("no JSON")
    (tmp_path / "index" / "a" / key(2)).write_text("half a fi")
    assert numbers(store, "a") == [1]


def test_the_entry_of_a_writer_that_is_killed_before_it_is_there_is_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    written(store, 1, "a")
    Index(tmp_path).add("a", key(2), {})
    assert numbers(store, "a") == read(store, "a") == [1]
