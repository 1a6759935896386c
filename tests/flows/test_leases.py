import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdq_core.errors import StoreError, TransientError
from kdq_core.recipe.spec import Site
from kdq_flows.owner import owner_tag
from kdq_flows.run.leases import device_lease, holder, machine_lease, physical_device

HOLD = """
import sys, time
from pathlib import Path
from kdq_core.recipe.spec import Site
from kdq_flows.run.leases import device_lease
with device_lease(Site(home=Path(sys.argv[1])), "cpu"):
    print("held", flush=True)
    time.sleep(60)
"""


def hold_elsewhere(site: Site) -> "subprocess.Popen[str]":
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(site.home)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def end(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def test_a_device_in_use_is_not_given_and_the_message_names_the_holder(site: Site) -> None:
    child = hold_elsewhere(site)
    told: list[str | None] = []
    try:
        with pytest.raises(TransientError) as caught, device_lease(site, "cpu", timeout=0.3, on_wait=told.append):
            pass
        assert str(caught.value) == (
            f"device 'cpu' was not free within 0.3 s: it is held by process {child.pid}; "
            "wait for that run, end it, or choose another device"
        )
        assert told == [owner_tag(child.pid)]
    finally:
        end(child)


def test_a_lease_comes_back_at_once_when_its_holder_is_killed(site: Site) -> None:
    child = hold_elsewhere(site)
    os.kill(child.pid, signal.SIGKILL)
    began = time.monotonic()
    with device_lease(site, "cpu", timeout=5):
        assert time.monotonic() - began < 1
    end(child)


def test_a_child_with_the_descriptor_keeps_the_device_after_its_parent_let_go(site: Site) -> None:
    with device_lease(site, "cpu") as lease:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[lease])
    with pytest.raises(TransientError), device_lease(site, "cpu", timeout=0.2):
        pass
    child.kill()
    child.wait()
    with device_lease(site, "cpu", timeout=1):
        pass


def test_the_holder_is_known_while_it_lives(site: Site) -> None:
    assert holder(site, "cpu") is None
    with device_lease(site, "cpu"):
        assert holder(site, "cpu") == owner_tag()


def test_two_devices_do_not_wait_for_each_other(site: Site) -> None:
    with device_lease(site, "cpu"), device_lease(site, "cuda:0", timeout=0.1):
        pass


def test_one_device_has_one_name_whatever_the_process_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [physical_device(name) for name in ("cpu", "cuda", "cuda:0", "cuda:3")] == [
        "cpu", "cuda-0", "cuda-0", "cuda-3",
    ]  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert physical_device("cuda") == "cuda-3"


def test_a_home_that_is_a_file_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a folder")
    with pytest.raises(StoreError) as caught, device_lease(Site(home=tmp_path / "home"), "cpu"):
        pass
    assert str(caught.value) == (
        f"cannot write the lock file {str(tmp_path / 'home/leases/cpu.lock')!r}: Not a directory; check the folder, "
        "then run again. Nothing was half-written: finished stages are kept"
    )


def test_a_lease_that_finds_the_disk_full_is_explained_and_given_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreError) as caught, device_lease(site, "cpu"):
            pass
    assert str(caught.value) == (
        f"cannot write the lock file {str(site.home / 'leases/cpu.lock')!r}: the disk is full; free some space or set "
        "KDQ_HOME to a larger disk, then run again. Nothing was half-written: finished stages are kept"
    )
    with device_lease(site, "cpu", timeout=1):
        pass


class Stage(threading.Thread):
    """A thread that holds the machine until the test ends it."""

    def __init__(self, site: Site, *, alone: bool) -> None:
        super().__init__(daemon=True)
        self.site, self.alone = site, alone
        self.waits, self.runs, self.may_end = threading.Event(), threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with machine_lease(self.site, alone=self.alone, on_wait=self.waits.set):
            self.runs.set()
            self.may_end.wait(20)

    def end(self) -> None:
        self.may_end.set()
        self.join(20)


def test_stages_share_the_machine_and_one_that_measures_time_has_it_alone(site: Site) -> None:
    first, second = Stage(site, alone=False), Stage(site, alone=False)
    assert first.runs.wait(5)
    assert second.runs.wait(5)
    measuring = Stage(site, alone=True)
    assert measuring.waits.wait(5)
    first.end()
    assert not measuring.runs.wait(0.2)
    second.end()
    assert measuring.runs.wait(5)
    later = Stage(site, alone=False)
    assert later.waits.wait(5)
    assert not later.runs.wait(0.2)
    measuring.end()
    assert later.runs.wait(5)
    later.end()
    assert not first.waits.is_set()


def test_a_stage_that_comes_later_waits_behind_one_that_measures_time(site: Site) -> None:
    first = Stage(site, alone=False)
    assert first.runs.wait(5)
    measuring = Stage(site, alone=True)
    assert measuring.waits.wait(5)
    later = Stage(site, alone=False)
    assert later.waits.wait(5)
    assert not later.runs.is_set()
    first.end()
    assert measuring.runs.wait(5)
    assert not later.runs.is_set()
    measuring.end()
    assert later.runs.wait(5)
    later.end()
