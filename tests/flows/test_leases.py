"""Leases of the machine: CPU slots, GPUs by their UUID, shares of a GPU, and the CPU alone for what measures time."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kdq_core.errors import StoreError
from kdq_core.plugins.contract import Needs
from kdq_core.recipe import gpus
from kdq_core.recipe.spec import Site
from kdq_flows.owner import owner_tag
from kdq_flows.run.holders import holders
from kdq_flows.run.leases import lease, most_at_once, physical_device
from tests.flows.leasing import ALONE, CPU, within

FIRST, SECOND = "GPU-1111", "GPU-2222"
HOLD = """
import sys, time
from pathlib import Path
from kdq_core.plugins.contract import Needs
from kdq_core.recipe.spec import Site
from kdq_flows.run.leases import lease
with lease(Site(home=Path("/another"), leases=Path(sys.argv[1])), Needs(device="cpu")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """A site with two GPUs, of a machine whose driver lists them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listed = ("580.1", [gpus.Gpu(FIRST, "NVIDIA H200"), gpus.Gpu(SECOND, "NVIDIA H200")])
    monkeypatch.setattr(gpus, "described", lambda _proc=None: listed)
    return Site(home=tmp_path, device="cuda:0", devices=("cuda:0", "cuda:1"), leases=tmp_path / "leases")


@contextmanager
def elsewhere(site: Site) -> Iterator["subprocess.Popen[str]"]:
    """A process of another home that holds a CPU slot."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(site.leases)], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


def taken(site: Site, needs: Needs) -> str | None:
    """Why a lease is not free; `None` if it is."""
    told: list[str] = []
    try:
        with lease(site, needs, on_wait=told.append, check=within(0.12)):
            return None
    except TimeoutError:
        (why,) = told
        return why


def test_homes_of_one_machine_share_a_slot_and_the_message_names_the_holder(site: Site) -> None:
    with elsewhere(site) as child:
        assert taken(site, CPU) == f"device 'cpu' is in use by process {child.pid}"
        assert [(one.device, one.owner) for one in holders(site)] == [("cpu-1", owner_tag(child.pid))]


def test_a_lease_comes_back_at_once_when_its_holder_is_killed(site: Site) -> None:
    with elsewhere(site) as child:
        os.kill(child.pid, signal.SIGKILL)
        began = time.monotonic()
        with lease(site, CPU, check=within(5)):
            assert time.monotonic() - began < 2


def test_a_child_with_the_descriptors_keeps_the_device_after_its_parent_let_go(site: Site) -> None:
    with lease(site, CPU) as leased:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=leased.descriptors)
    assert taken(site, CPU) is not None
    assert taken(site, ALONE) == "it measures time, and another stage computes"
    child.kill()
    child.wait()
    assert taken(site, CPU) is None


def test_there_are_as_many_leases_of_the_cpu_as_slots(site: Site) -> None:
    two = site.model_copy(update={"cpu_slots": 2})
    assert (most_at_once(site), most_at_once(two)) == (1, 2)
    with lease(two, CPU), lease(two, Needs()):
        assert taken(two, CPU) == f"device 'cpu' is in use by process {os.getpid()}"
        assert [one.device for one in holders(site)] == ["cpu-1", "cpu-2"]
    with lease(two, Needs(devices=2)) as leased:
        assert leased.devices == ("cpu", "cpu")
        assert taken(two, CPU) is not None


def test_a_card_has_one_name_whatever_the_process_may_see(two_gpus: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [physical_device(name) for name in ("cpu", "cuda", "cuda:0", "cuda:1", "cuda:3")]
    assert names == ["cpu", FIRST, FIRST, SECOND, "cuda-3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert physical_device("cuda") == SECOND
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2")
    assert physical_device("cuda") == SECOND
    one = two_gpus.at("cuda:0")
    with lease(one, Needs()):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert taken(two_gpus.at("cuda:1"), Needs()) == f"device 'cuda:1' is in use by process {os.getpid()}"
        assert taken(two_gpus.at("cuda:0"), Needs()) is None


def test_each_stage_gets_a_free_gpu_and_the_cpu_is_free_beside_them(two_gpus: Site) -> None:
    assert most_at_once(two_gpus) == 3
    with lease(two_gpus, Needs()) as one, lease(two_gpus, Needs()) as two:
        assert (one.device, two.device) == ("cuda:0", "cuda:1")
        assert taken(two_gpus, Needs()) == f"devices 'cuda:0', 'cuda:1' are in use by process {os.getpid()}"
        assert [taken(two_gpus, needs) for needs in (CPU, ALONE)] == [None, None]
        assert {(held.device, held.share) for held in holders(two_gpus) if held.owner} == {(FIRST, 1), (SECOND, 1)}
    with lease(two_gpus, Needs(devices=2)) as both:
        assert both.devices == ("cuda:0", "cuda:1")
        assert taken(two_gpus, Needs()) is not None


def test_stages_whose_shares_fit_run_on_one_gpu(two_gpus: Site) -> None:
    half = two_gpus.at("cuda:0").model_copy(update={"gpu_share": 0.5})
    assert most_at_once(half) == 3
    with lease(half, Needs()), lease(half, Needs(memory=0.3)):
        assert taken(half, Needs(memory=0.1)) is None
        assert taken(half, Needs()) is not None
        assert [held.share for held in holders(half) if held.owner] == [7 / 8]
    with lease(half, Needs(memory=1.0)):
        assert taken(half, Needs(memory=0.1)) is not None


def test_a_stage_that_wants_all_gpus_is_not_overtaken(two_gpus: Site) -> None:
    with ExitStack() as held:
        held.enter_context(lease(two_gpus, Needs()))
        wide = Stage(two_gpus, Needs(devices=2))
        assert wide.waits.wait(5)
        later = Stage(two_gpus, Needs())
        assert not later.runs.wait(0.3)
    assert wide.runs.wait(5)
    wide.end()
    assert later.runs.wait(5)
    later.end()


class Stage(threading.Thread):
    """A thread that holds a lease until the test ends it."""

    def __init__(self, site: Site, needs: Needs) -> None:
        super().__init__(daemon=True)
        self.site, self.needs, self.why = site, needs, ""
        self.waits, self.runs, self.may_end = threading.Event(), threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with lease(self.site, self.needs, on_wait=self.told):
            self.runs.set()
            self.may_end.wait(20)

    def told(self, why: str) -> None:
        self.why = why
        self.waits.set()

    def end(self) -> None:
        self.may_end.set()
        self.join(20)


def test_stages_share_the_cpu_and_one_that_measures_time_has_it_alone(site: Site) -> None:
    two = site.model_copy(update={"cpu_slots": 2})
    first, second = Stage(two, CPU), Stage(two, CPU)
    assert first.runs.wait(5)
    assert second.runs.wait(5)
    measuring = Stage(two, ALONE)
    assert measuring.waits.wait(5)
    assert measuring.why == "it measures time, and another stage computes"
    first.end()
    later = Stage(two, CPU)  # waits behind the one that measures
    assert later.waits.wait(5)
    assert later.why == "another stage waits for several devices, or to measure time"
    assert not measuring.runs.is_set()
    second.end()
    assert measuring.runs.wait(5)
    assert not later.runs.is_set()
    assert ("cpu, alone", owner_tag()) in {(one.device, one.owner) for one in holders(two)}
    assert taken(two, CPU) == "another stage measures time"
    measuring.end()
    assert later.runs.wait(5)
    later.end()
    assert not first.waits.is_set()


def test_the_lock_files_are_for_all_users_of_the_machine(site: Site) -> None:
    before = os.umask(0o077)
    try:
        with lease(site, CPU):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (site.leases, *site.leases.iterdir())}
    finally:
        os.umask(before)
    assert modes.pop("leases") == 0o1777
    assert modes == dict.fromkeys(("cpu.queue", "cpu-1.lock", "machine.lock"), 0o666)


def test_a_folder_that_is_not_for_this_user_is_told_with_its_remedy(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(StoreError) as caught, lease(site, CPU):
        pass
    assert str(caught.value) == (
        f"cannot write the lock file {str(site.leases / 'cpu.queue')!r}: Permission denied; set KDQ_LEASES to a folder "
        "that all users of this machine's devices can write to, the same for all of them"
    )


def test_a_link_in_the_place_of_a_lock_file_is_not_followed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    site.leases.mkdir()
    (site.leases / "cpu-1.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(StoreError, match="it is a link"), lease(site, CPU):
        pass
    assert (tmp_path / "mine").read_text() == "keep"


def test_a_lease_that_finds_the_disk_full_is_explained_and_given_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreError) as caught, lease(site, CPU):
            pass
    assert str(caught.value) == (
        f"cannot write the lock file {str(site.leases / 'cpu-1.lock')!r}: the disk is full; free some space or set "
        "KDQ_HOME to a larger disk, then run again. Nothing was half-written: finished stages are kept"
    )
    assert taken(site, CPU) is None
