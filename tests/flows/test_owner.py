import os
import subprocess
import sys

import pytest

from kdq_flows.owner import boot_id, host, is_alive, owner_tag, start_time


def test_this_process_is_alive_under_its_tag() -> None:
    assert owner_tag().split(":")[:2] == [host(), str(os.getpid())]
    assert is_alive(owner_tag())


def test_a_killed_process_is_dead_even_before_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    tag = owner_tag(child.pid)
    assert is_alive(tag)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(tag)
    child.wait()
    assert not is_alive(tag)
    with pytest.raises(ProcessLookupError):
        owner_tag(child.pid)


def test_a_reused_process_number_and_another_boot_are_other_processes() -> None:
    assert not is_alive(f"{host()}:{os.getpid()}:1:{boot_id()}")
    assert not is_alive(f"{host()}:{os.getpid()}:{start_time(os.getpid())}:another-boot")


@pytest.mark.parametrize("tag", ["elsewhere:1:2:3", "", "no tag at all", f"{host()}:x:2:3"])
def test_of_other_hosts_and_of_nonsense_nothing_is_assumed(tag: str) -> None:
    assert is_alive(tag)
