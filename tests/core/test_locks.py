"""Locks on files, held here and in other processes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdq_core import locks
from kdq_core.errors import LockedError, TransientError
from kdq_core.locks import held, try_held

HOLD = """
import sys, time
from pathlib import Path
from kdq_core.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `path`; it is killed at the end."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


def test_one_lock_has_one_holder_in_threads_too(tmp_path: Path) -> None:
    with held(tmp_path / "new folder" / "a.lock"):
        assert try_held(tmp_path / "new folder" / "a.lock") is None
    with held(tmp_path / "new folder" / "a.lock", seconds=0):
        pass


def test_two_files_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with held(tmp_path / "a.lock"), held(tmp_path / "b.lock", seconds=0):
        pass


def test_a_lock_that_is_not_free_in_time_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with held_elsewhere(path):
        began = time.monotonic()
        with pytest.raises(LockedError) as caught:
            held(path, seconds=0.2)
        assert 0.2 <= time.monotonic() - began < 5
    assert str(caught.value) == (
        f"the lock file {str(path)!r} was not free within 0.2 s: another process holds it; wait for that process or "
        "end it, then try again"
    )
    assert isinstance(caught.value, TransientError)


def test_the_lock_of_a_killed_holder_is_free_at_once(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "a.lock") as child:
        assert try_held(tmp_path / "a.lock") is None
        child.kill()
        child.wait()
        with held(tmp_path / "a.lock", seconds=0):
            pass


def test_who_waits_gets_the_lock_when_it_is_given_back(tmp_path: Path) -> None:
    file = held(tmp_path / "a.lock")
    threading.Timer(0.2, file.close).start()
    with held(tmp_path / "a.lock", seconds=20):
        assert file.closed


def test_a_child_with_the_descriptor_keeps_the_lock(tmp_path: Path) -> None:
    with held(tmp_path / "a.lock") as file:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[file.fileno()])
    with child:
        assert try_held(tmp_path / "a.lock") is None
    with held(tmp_path / "a.lock", seconds=0):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_on_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = tmp_path / "a.lock", locks.fcntl.flock

    def removed_before(file: object, operation: int) -> None:
        monkeypatch.setattr(locks.fcntl, "flock", flock)
        path.unlink()
        flock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(locks.fcntl, "flock", removed_before)
    with held(path):
        assert path.exists()
        assert try_held(path) is None


def test_what_a_holder_wrote_stays_in_the_file(tmp_path: Path) -> None:
    with held(tmp_path / "a.lock") as file:
        file.write(b"process 7")
    with held(tmp_path / "a.lock"):
        assert (tmp_path / "a.lock").read_bytes() == b"process 7"


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a folder")
    with pytest.raises(NotADirectoryError):
        try_held(tmp_path / "home" / "locks" / "a.lock")


def test_several_hold_a_lock_together_if_all_ask_for_it_so(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with held(path, shared=True), held(path, seconds=0, shared=True):
        assert try_held(path) is None
    with held(path):
        assert try_held(path, shared=True) is None
