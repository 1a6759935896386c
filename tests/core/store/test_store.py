import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from kdq_core.errors import StoreError
from kdq_core.store.hashing import canonical
from kdq_core.store.records import Checkpoint
from kdq_core.store.store import Entry, Store, check_writable

KEY = "ab" + "0" * 62
RECORD = Checkpoint(slot="teacher", weights="weights.bin", parameters=3)


def written(store: Store, key: str = KEY, content: bytes = b"weights", **parts: str) -> Entry:
    with store.draft(key) as draft:
        (draft / "weights.bin").write_bytes(content)
        return store.commit(draft, stage="train_teacher", key=key, parts=dict(parts), record=RECORD)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_a_changed_or_missing_manifest_is_an_error(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    path = written(store).folder / name
    path.write_text(path.read_text().replace("e", "f"))
    with pytest.raises(StoreError, match=r"'manifest.json' of the store entry .* is damaged: its sha256 is"):
        store.lookup(KEY)
    path.unlink()
    with pytest.raises(StoreError, match=f"'{name}' of the store entry .* is damaged: it is missing"):
        store.lookup(KEY)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "the disk is full; free some space or set KDQ_HOME to a larger disk, then run again"),
        (errno.EROFS, "it is not writable; make it writable or set KDQ_HOME to a folder that is"),
        (errno.EACCES, "it is not writable; make it writable or set KDQ_HOME to a folder that is"),
    ],
)
def test_a_full_or_read_only_disk_is_explained_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    store = Store(tmp_path)

    def refuse(_fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError) as caught:
        written(store)
    assert str(caught.value) == (
        f"cannot write to the store {str(tmp_path)!r}: {text}. Nothing was half-written: finished stages are kept"
    )
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def killed_while_drafting(root: Path) -> subprocess.Popen[bytes]:
    """A process that was killed with a draft open, and that nobody has waited for yet: its number is not free."""
    code = "import sys, time, pathlib, kdq_core.store.store as s\n"
    code += "with s.Store(pathlib.Path(sys.argv[1])).draft(sys.argv[2]) as d:\n"
    code += "    (d / 'half').write_text('written')\n    print(flush=True)\n    time.sleep(600)"
    writer = subprocess.Popen([sys.executable, "-c", code, str(root), KEY], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout:
        assert writer.stdout.readline()
    writer.kill()
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)
    return writer


def test_a_killed_process_leaves_a_draft_that_is_swept_even_while_its_number_is_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with killed_while_drafting(tmp_path) as writer, store.draft(KEY) as mine:
        assert psutil.pid_exists(writer.pid)
        left = [p.name for p in tmp_path.glob("drafts/*") if p.is_dir() and p != mine]
        assert len(left) == 1
        assert store.sweep() == left
        assert [p for p in tmp_path.glob("drafts/*") if p.is_dir()] == [mine]
        assert store.sweep() == []
    assert list(tmp_path.glob("drafts/*")) == []


def test_a_draft_at_work_in_another_process_is_not_swept(tmp_path: Path) -> None:
    code = "import sys, pathlib, kdq_core.store.store as s; print(s.Store(pathlib.Path(sys.argv[1])).sweep())"
    with Store(tmp_path).draft(KEY) as mine:
        swept = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert swept.stdout == "[]\n"
        assert mine.is_dir()


@pytest.mark.parametrize("name", [".DS_Store", "notes", f"{KEY}.aa"])
def test_what_has_no_lock_beside_it_is_not_swept(tmp_path: Path, name: str) -> None:
    (tmp_path / "drafts" / name).mkdir(parents=True)
    assert Store(tmp_path).sweep() == []
    assert (tmp_path / "drafts" / name).is_dir()


def test_a_lock_file_that_a_killed_process_never_locked_is_swept_and_one_at_work_is_not(tmp_path: Path) -> None:
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    (drafts / "dead.new").touch()
    with (drafts / "living.new").open("w") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        assert Store(tmp_path).sweep() == []
        assert [path.name for path in drafts.iterdir()] == ["living.new"]


def test_a_draft_is_made_though_a_sweep_takes_its_lock_file_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, lock, swept = Store(tmp_path), fcntl.flock, []

    def late(file: Any, kind: int) -> None:
        if not swept and kind == fcntl.LOCK_EX:
            swept.append(True)
            store.sweep()
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with store.draft(KEY) as draft:
        assert draft.is_dir()
        assert len(list((tmp_path / "drafts").glob("*.lock"))) == 1
    assert swept
    assert list((tmp_path / "drafts").iterdir()) == []


def test_what_could_not_be_removed_keeps_its_lock_and_is_swept_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    with monkeypatch.context() as patched, store.draft(KEY) as draft:
        patched.setattr(shutil, "rmtree", lambda *_args, **_options: None)
        name = draft.name
    assert sorted(path.name for path in (tmp_path / "drafts").iterdir()) == [name, f"{name}.lock"]
    assert store.sweep() == [name]
    assert list((tmp_path / "drafts").iterdir()) == []


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical({"b": [1, 2.5], "a": None}) == canonical({"a": None, "b": [1, 2.5]}) == b'{"a":null,"b":[1,2.5]}'


def test_a_home_that_cannot_be_written_is_refused_and_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "not" / "there"
    check_writable(home)
    assert list(tmp_path.iterdir()) == []
    kept = "Nothing was half-written: finished stages are kept"
    (tmp_path / "not").touch()
    with pytest.raises(StoreError) as caught:
        check_writable(home)
    assert str(caught.value) == (
        f"cannot write to KDQ_HOME {str(home)!r}: {str(tmp_path / 'not')!r} is no folder; check the folder, then run "
        f"again. {kept}"
    )
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(StoreError) as caught:
        check_writable(tmp_path)
    assert str(caught.value) == (
        f"cannot write to KDQ_HOME {str(tmp_path)!r}: it is not writable; make it writable or set KDQ_HOME to a folder "
        f"that is. {kept}"
    )
