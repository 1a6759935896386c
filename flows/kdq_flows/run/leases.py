"""A device belongs to one stage at a time: lock files in one folder of the machine, shared by its homes and users.

A GPU's lock files bear its UUID, because processes may number one card differently. Each GPU has `PARTS` of them: a
stage that takes a share of its memory takes so many parts. Beside them lie those of the CPU's slots, and one lock that
all stages on the CPU share: a stage that measures time takes that alone, so that no other stage computes on the CPU.

A stage takes all that it needs at once or nothing, so no two stages wait for each other. The parent passes the open
files to its worker: the device stays locked as long as either of them lives.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from kdq_core.errors import StoreError
from kdq_core.locks import try_held
from kdq_core.plugins.contract import Needs
from kdq_core.recipe.gpus import CPU, gpu_of, visible_gpu
from kdq_core.recipe.spec import Site
from kdq_core.store.store import explained
from kdq_flows.owner import is_alive, owner_tag

PARTS = 8
"""A share of a GPU's memory is rounded up to eighths."""
MACHINE = "machine"
_POLL_SECONDS = 0.05
_LATER_TRIES = 20
"""After so many tries the queue is not only held by another stage's try."""
_EVERYBODY = 0o666


@dataclass(frozen=True)
class Leased:
    """What a stage has while it runs.

    Attributes:
        descriptors: of the open lock files, for the child.
        devices: as in `Site.device`; several for a stage that asks for several.
    """

    descriptors: tuple[int, ...]
    devices: tuple[str, ...]

    @property
    def device(self) -> str:
        """The first device."""
        return self.devices[0]


def physical_device(device: str) -> str:
    """Name of the hardware behind `device`: `cpu`, the UUID of a GPU, or `cuda-<number>` if the driver tells none."""
    if device == CPU:
        return device
    return gpu_of(device).uuid or f"cuda-{visible_gpu(device)}"


def most_at_once(site: Site) -> int:
    """How many stages of this site can hold a lease at once."""
    gpus = [device for device in site.all_devices if device != CPU]
    return site.cpu_slots + len(gpus) * (PARTS // _parts(site.gpu_share))


@contextmanager
def lease(
    site: Site,
    needs: Needs,
    *,
    on_wait: Callable[[str], None] = lambda _why: None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Leased]:
    """Hold what a stage needs of the machine.

    A stage that needs much, several devices or the CPU alone, keeps stages that come later from what it waits for.

    Args:
        site: its devices, its slots, and the folder of the lock files.
        needs: of the stage.
        on_wait: called once, with the reason, if KDQ must wait.
        check: called while KDQ waits; what it raises ends the waiting.

    Raises:
        StoreError: a lock file cannot be written.
    """
    if needs.device == "none":
        yield Leased((), (CPU,))
        return
    asked = _Asked(site, needs)
    with ExitStack() as stack:
        devices = _waited(asked, stack, on_wait, check)
        yield Leased(tuple(file.fileno() for file in asked.files), devices)


class _Asked:
    """One stage's request for devices."""

    def __init__(self, site: Site, needs: Needs) -> None:
        self.site, self.needs = site, needs
        self.devices = site.all_devices if needs.device == "site" else (CPU,)
        self.on_cpu = self.devices == (CPU,)
        self.much = needs.alone or needs.devices > 1
        self.parts = {device: parts_of(device) for device in self.devices if device != CPU}
        self.queue = lock_file(site, f"{'cpu' if self.on_cpu else 'gpu'}.queue")
        self.files: list[FileIO] = []
        self.why = ""

    def tried(self, stack: ExitStack) -> tuple[str, ...] | None:
        """Take all that is asked for, or nothing; gives the devices."""
        with ExitStack() as undo:
            self.files = []
            found = self._cpu(undo) if self.on_cpu else self._gpus(undo)
            if found is None:
                return None
            for file in self.files:
                stack.enter_context(file)
            undo.pop_all()
            return found

    def _cpu(self, undo: ExitStack) -> tuple[str, ...] | None:
        if not self._machine(undo):
            return None
        if self.needs.alone:
            return (CPU,)
        count, slots = self.needs.devices, [f"{CPU}-{n}" for n in range(1, self.site.cpu_slots + 1)]
        if self._some(undo, slots, count):
            return (CPU,) * count
        self.why = _in_use(self.site, [CPU], slots)
        return None

    def _gpus(self, undo: ExitStack) -> tuple[str, ...] | None:
        if self.needs.alone and not self._machine(undo):
            return None
        whole, found = self.much, list[str]()
        parts = PARTS if whole else _parts(self.needs.memory or self.site.gpu_share)
        for device, names in self.parts.items():
            if len(found) < self.needs.devices and self._some(undo, names, parts):
                found.append(device)
        if len(found) == self.needs.devices:
            return tuple(found)
        self.why = _in_use(self.site, self.devices, [name for names in self.parts.values() for name in names])
        return None

    def _machine(self, undo: ExitStack) -> bool:
        """The lock that stages on the CPU share, and that a stage has alone if it measures time."""
        alone = self.needs.alone
        if self._held(undo, MACHINE, shared=not alone):
            return True
        self.why = "it measures time, and another stage computes" if alone else "another stage measures time"
        return False

    def _some(self, undo: ExitStack, names: Iterable[str], count: int) -> bool:
        """Take `count` of the locks, or none."""
        with ExitStack() as mine:
            before, left = len(self.files), count
            for name in names:
                left -= left > 0 and self._held(mine, name)
            if left:
                del self.files[before:]
                return False
            undo.push(mine.pop_all())
            return True

    def _held(self, undo: ExitStack, name: str, *, shared: bool = False) -> bool:
        path = lock_file(self.site, f"{name}.lock")
        with _explained(path):
            file = try_held(path, shared=shared)
            if file is None:
                return False
            undo.enter_context(file)
            if not shared:
                os.ftruncate(file.fileno(), 0)
                os.pwrite(file.fileno(), owner_tag().encode(), 0)
        self.files.append(file)
        return True


def _waited(
    asked: _Asked, stack: ExitStack, on_wait: Callable[[str], None], check: Callable[[], None]
) -> tuple[str, ...]:
    """Try until all is there. Who asks for much keeps its place in the queue meanwhile."""
    tries, told, queue = 0, False, None
    with ExitStack() as place:
        while True:
            if queue is None:
                with _explained(asked.queue):
                    queue = try_held(asked.queue)
                if queue is not None:
                    place.enter_context(queue)
            if queue is not None:
                found = asked.tried(stack)
                if found is not None:
                    return found
                if not asked.much:
                    place.close()
                    queue = None
            elif tries == _LATER_TRIES:
                asked.why = asked.why or "another stage waits for several devices, or to measure time"
            if asked.why and not told:
                told = True
                on_wait(asked.why)
            check()
            tries += 1
            time.sleep(_POLL_SECONDS)


def lock_file(site: Site, name: str) -> Path:
    """The lock file of that name. It and its folder are for all users, whoever makes them.

    Raises:
        StoreError: it cannot be made.
    """
    path = site.leases / name
    with _explained(path):
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(0o1777)
        try:
            made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _EVERYBODY)
        except FileExistsError:
            if path.is_symlink():
                raise OSError(errno.ELOOP, "it is a link") from None
            return path
        os.fchmod(made, _EVERYBODY)
        os.close(made)
    return path


def parts_of(device: str) -> list[str]:
    """Names of the locks of a GPU's parts."""
    return [f"{physical_device(device)}.{n}" for n in range(1, PARTS + 1)]


def owner_in(path: Path) -> str | None:
    """Owner tag of the process that took the lock last; `None` if it is dead or unknown."""
    try:
        tag = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return tag if tag and is_alive(tag) else None


def _parts(share: float) -> int:
    return math.ceil(round(share * PARTS, 6))


def _in_use(site: Site, devices: Sequence[str], names: Sequence[str]) -> str:
    owners = {owner_in(site.leases / f"{name}.lock") for name in names}
    pids = sorted({int(owner.split(":")[1]) for owner in owners if owner})
    what = f"device {devices[0]!r} is" if len(devices) == 1 else f"devices {', '.join(map(repr, devices))} are"
    by = f" by process {', '.join(map(str, pids))}" if pids else ""
    return f"{what} in use{by}"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    with explained(path, "write the lock file"):
        try:
            yield
        except PermissionError as error:
            raise StoreError(
                f"cannot write the lock file {str(path)!r}: {error.strerror}; set KDQ_LEASES to a folder that all "
                "users of this machine's devices can write to, the same for all of them"
            ) from error
