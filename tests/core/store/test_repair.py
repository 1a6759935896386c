"""A damaged entry is a miss, and is said to be one."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import StoreError
from kdq_core.store.hashing import sha256_of
from kdq_core.store.records import Checkpoint
from kdq_core.store.store import Entry, Store

KEY, OTHER = "ab" + "0" * 62, "cd" + "1" * 62
RECORD = Checkpoint(slot="teacher", weights="sub/weights.bin", parameters=3)


def written(store: Store, content: bytes = b"weights") -> Entry:
    with store.draft(KEY) as draft:
        (draft / "sub").mkdir()
        (draft / "sub" / "weights.bin").write_bytes(content)
        return store.commit(draft, stage="train_teacher", key=KEY, parts={}, record=RECORD)


def rewritten(folder: Path, **changes: Any) -> None:
    """Another manifest with its seal."""
    text = json.dumps(json.loads((folder / "manifest.json").read_text()) | changes).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_text(sha256_of(text))


@pytest.mark.parametrize(
    ("path", "fact"),
    [
        ("/etc/passwd", "it leads out of the entry"),
        ("../x", "it leads out of the entry"),
        ("sub/../../x", "it leads out of the entry"),
        ("", "it leads out of the entry"),
        ("./sub/weights.bin", "it leads out of the entry"),
        ("link", "it is a symlink"),
        ("behind/weights.bin", "it lies behind the symlink 'behind'"),
        ("sub", "it is no file"),
        ("gone", "it is missing"),
    ],
)
def test_a_file_that_does_not_lie_in_the_entry_is_damage(tmp_path: Path, path: str, fact: str) -> None:
    store = Store(tmp_path)
    folder = written(store).folder
    (folder / "link").symlink_to("sub/weights.bin")
    (folder / "behind").symlink_to("sub")
    (ref,) = json.loads((folder / "manifest.json").read_text())["files"]
    rewritten(folder, files=[ref | {"path": path}])
    with pytest.raises(StoreError) as caught:
        store.lookup(KEY)
    assert str(caught.value) == (
        f"the file {path!r} of the store entry {str(folder)!r} is damaged: {fact}; KDQ computes it anew"
    )


def test_a_manifest_that_is_a_symlink_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = written(store).folder
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    (folder / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(StoreError, match=r"'manifest.json' of the store entry .* is damaged: it is a symlink; KDQ"):
        store.lookup(KEY)


def test_an_entry_copied_under_another_key_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    shutil.copytree(written(store).folder, store.folder(OTHER))
    for read in (store.lookup, store.peek):
        with pytest.raises(StoreError) as caught:
            read(OTHER)
        assert str(caught.value) == (
            f"the file 'manifest.json' of the store entry {str(store.folder(OTHER))!r} is damaged: it belongs to the "
            "entry ab0000000000, not to cd1111111111; KDQ computes it anew"
        )
    assert store.get(KEY).record == RECORD


def test_a_record_of_another_version_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rewritten(written(store).folder, record={"type": "checkpoint", "role": "teacher"})
    with pytest.raises(StoreError, match="is damaged: it was written by another version of KDQ or of a plug-in; KDQ"):
        store.lookup(KEY)


@pytest.mark.parametrize("odd", ["empty folder", "file", "dead symlink"])
def test_what_only_stands_in_the_place_of_an_entry_is_removed_and_written_over(tmp_path: Path, odd: str) -> None:
    store, told = Store(tmp_path), list[str]()

    def put() -> None:
        store.folder(KEY).parent.mkdir(exist_ok=True)
        if odd == "empty folder":
            store.folder(KEY).mkdir()
        elif odd == "file":
            store.folder(KEY).write_text("x")
        else:
            store.folder(KEY).symlink_to("nowhere")

    put()
    assert store.lookup_or_discard(KEY, told.append) is None
    assert len(told) == 1
    assert not os.path.lexists(store.folder(KEY))
    assert list((tmp_path / "drafts").iterdir()) == []
    put()
    assert written(store) == store.get(KEY)


def test_a_damaged_entry_of_a_store_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = Store(tmp_path), list[str]()
    folder = written(store).folder
    (folder / "manifest.json").unlink()

    def refuse(*_args: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StoreError) as caught:
        store.lookup_or_discard(KEY, told.append)
    assert str(caught.value) == (
        f"the file 'manifest.json' of the store entry {str(folder)!r} is damaged: it is missing; KDQ cannot remove "
        f"that entry: Read-only file system. Make the store {str(tmp_path)!r} writable, then run again"
    )
    assert told == []
    assert folder.is_dir()


def test_an_entry_that_another_process_mended_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = Store(tmp_path), list[str]()
    file = written(store).file("sub/weights.bin")
    file.write_bytes(b"weightz")
    removed = store._removed

    def late(*args: Any, **options: Any) -> bool:
        file.write_bytes(b"weights")
        return removed(*args, **options)

    monkeypatch.setattr(store, "_removed", late)
    entry = store.lookup_or_discard(KEY, told.append)
    assert entry == store.get(KEY)
    assert told == []
