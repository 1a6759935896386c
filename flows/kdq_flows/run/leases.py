"""A device belongs to one stage at a time: a lock file per device, held by `flock`.

The kernel gives the lock back when the last process that has the file open is gone, also after `kill -9`. The parent
takes the lock and hands the open file to its worker, so the device stays taken as long as either of them lives.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdq_core.errors import TransientError
from kdq_core.recipe.spec import Site
from kdq_core.store.store import explained
from kdq_flows.owner import is_alive, owner_tag

_POLL_SECONDS = 0.05


def physical_device(device: str) -> str:
    """Name of the hardware behind `device`: `cpu`, or `cuda-<number>` as the driver counts.

    Inside CUDA_VISIBLE_DEVICES `cuda:0` means the first one listed there, so two processes may mean different devices
    by one name.
    """
    if device == "cpu":
        return device
    index = int(device.partition(":")[2] or 0)
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return f"cuda-{visible[index] if index < len(visible) else index}"


def holder(site: Site, device: str) -> str | None:
    """Owner tag of the process that took the device last and still lives, or `None`."""
    try:
        tag = _lock_path(site, device).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return tag if tag and is_alive(tag) else None


@contextmanager
def device_lease(
    site: Site,
    device: str,
    *,
    timeout: float | None = None,
    on_wait: Callable[[str | None], None] = lambda _holder: None,
) -> Iterator[int]:
    """Hold the device's lock; yields the open file's descriptor, for `pass_fds`.

    Args:
        site: its home holds the lock files.
        device: as in `Site.device`.
        timeout: seconds to wait; none waits for ever.
        on_wait: called once with the holder's owner tag if there is a wait.

    Raises:
        TransientError: the device was not free in time.
        StoreError: the lock file cannot be written.
    """
    descriptor = _open(_lock_path(site, device))
    try:
        _acquire(descriptor, site, device, timeout, on_wait)
        with explained(_lock_path(site, device), "write the lock file"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner_tag().encode(), 0)
        yield descriptor
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _lock_path(site: Site, device: str) -> Path:
    return site.home / "leases" / f"{physical_device(device)}.lock"


def _open(path: Path) -> int:
    with explained(path, "write the lock file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _acquire(
    descriptor: int, site: Site, device: str, seconds: float | None, on_wait: Callable[[str | None], None]
) -> None:
    deadline = None if seconds is None else time.monotonic() + seconds
    told = False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = holder(site, device)
        if deadline is not None and time.monotonic() >= deadline:
            raise TransientError(
                f"device {device!r} was not free within {seconds:g} s: it is held by {_describe(owner)}; "
                "wait for that run, end it, or choose another device"
            )
        if not told:
            on_wait(owner)
            told = True
        time.sleep(_POLL_SECONDS)


def _describe(owner: str | None) -> str:
    return f"process {owner.split(':')[1]}" if owner else "a process that did not leave its name"
