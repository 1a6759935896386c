"""A device belongs to one stage at a time: a lock file per device. A stage that measures time has the machine alone.

The parent takes the lock of the device and passes the open file to its worker. The device stays locked as long as
either of them lives. The lock of the machine belongs to the parent.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from kdq_core.errors import LockedError, TransientError
from kdq_core.locks import held, try_held
from kdq_core.plan.machine import visible_gpu
from kdq_core.recipe.spec import Site
from kdq_core.store.store import explained
from kdq_flows.owner import is_alive, owner_tag


def physical_device(device: str) -> str:
    """Name of the hardware behind `device`: `cpu`, or `cuda-<number>` with the driver's number.

    If CUDA_VISIBLE_DEVICES is set, `cuda:0` means the first device listed there. Two processes may mean
    different devices by it.
    """
    if device == "cpu":
        return device
    return f"cuda-{visible_gpu(device)}"


def holder(site: Site, device: str) -> str | None:
    """Owner tag of the process that locked the device last; `None` if it is dead or unknown."""
    try:
        tag = _lock_path(site, device).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return tag if tag and is_alive(tag) else None


def holders(site: Site) -> dict[str, str | None]:
    """For each device that a run of this home has ever used: the owner tag of who holds it now, `None` if it is free.

    Looking takes a shared lock for a moment, so a run that asks at that moment looks again 50 ms later.
    """
    found: dict[str, str | None] = {}
    for path in sorted((site.home / "leases").glob("*.lock")):
        if path.stem in ("machine", "queue"):
            continue
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                found[path.stem] = None
            except BlockingIOError:
                found[path.stem] = file.read().decode(errors="replace").strip()
    return found


@contextmanager
def device_lease(
    site: Site,
    device: str,
    *,
    timeout: float | None = None,
    on_wait: Callable[[str | None], None] = lambda _holder: None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """Hold the device's lock; yields the descriptor of the open file, for `pass_fds`.

    Args:
        site: its home holds the lock files.
        device: as in `Site.device`.
        timeout: seconds to wait; `None` waits without limit.
        on_wait: called once with the holder's owner tag if KDQ must wait.
        check: called while KDQ waits; what it raises ends the waiting.

    Raises:
        TransientError: the device was not free within `timeout`.
        StoreError: the lock file cannot be written.
    """
    path = _lock_path(site, device)
    with explained(path, "write the lock file"):
        lock = try_held(path)
    if lock is None:
        on_wait(holder(site, device))
        lock = _awaited(site, device, timeout, check)
    with lock:
        with explained(path, "write the lock file"):
            os.ftruncate(lock.fileno(), 0)
            os.pwrite(lock.fileno(), owner_tag().encode(), 0)
        yield lock.fileno()


@contextmanager
def machine_lease(
    site: Site, *, alone: bool, on_wait: Callable[[], None] = lambda: None, check: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Share the machine with the heavy stages of this home on other devices, or have it alone to measure time.

    A stage that comes later waits behind one that waits for the machine alone, which else might wait for ever. Take the
    lease of the device first.

    Args:
        site: its home holds the lock files.
        alone: no other heavy stage of this home may run beside.
        on_wait: called once if KDQ must wait.
        check: called while KDQ waits; what it raises ends the waiting.

    Raises:
        StoreError: a lock file cannot be written.
    """
    folder = site.home / "leases"
    with explained(folder, "write the lock file"):
        queue = try_held(folder / "queue.lock")
        lock = None if queue is None else try_held(folder / "machine.lock", shared=not alone)
        if lock is None:
            on_wait()
            queue = queue or held(folder / "queue.lock", check=check)
            try:
                lock = held(folder / "machine.lock", shared=not alone, check=check)
            except BaseException:
                queue.close()
                raise
        assert queue is not None
        queue.close()
    with lock:
        yield


def _lock_path(site: Site, device: str) -> Path:
    return site.home / "leases" / f"{physical_device(device)}.lock"


def _awaited(site: Site, device: str, seconds: float | None, check: Callable[[], None]) -> FileIO:
    path = _lock_path(site, device)
    try:
        with explained(path, "write the lock file"):
            return held(path, seconds=seconds, check=check)
    except LockedError as error:
        raise TransientError(
            f"device {device!r} was not free within {seconds:g} s: it is held by {_describe(holder(site, device))}; "
            "wait for that run, end it, or choose another device"
        ) from error


def _describe(owner: str | None) -> str:
    return f"process {owner.split(':')[1]}" if owner else "a process that did not leave its name"
