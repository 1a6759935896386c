"""Who holds the devices of this machine: for `kdq status` and `kdq doctor`."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdq_core.recipe.gpus import CPU
from kdq_core.recipe.spec import Site
from kdq_flows.run.leases import MACHINE, PARTS, owner_in, physical_device

MEASURED = "cpu, alone"
"""What the lock of the machine is called: a stage that measures time has all slots."""


@dataclass(frozen=True)
class Held:
    """A device, or a part of one, and who holds it.

    Attributes:
        device: name of the lease: `cpu-<slot>`, or the UUID of a GPU.
        owner: owner tag of its holder; empty if the holder is dead or unknown; `None`: it is free.
        share: the share of the device.
        file: a lock file of it.
    """

    device: str
    owner: str | None
    share: float
    file: Path


def holders(site: Site) -> list[Held]:
    """The devices of this site and those that others hold on this machine, each with who holds it.

    Looking takes a shared lock for a moment, so a stage that asks at that moment looks again 50 ms later.
    """
    own = {physical_device(device) for device in site.all_devices} - {CPU}
    slots = [f"{CPU}-{n}" for n in range(1, site.cpu_slots + 1)]
    found = {path.name.removesuffix(".lock"): path for path in site.leases.glob("*.lock")}
    machine = found.pop(MACHINE, site.leases / f"{MACHINE}.lock")
    devices = {name.rpartition(".")[0] or name for name in found} | own | {*slots}
    rows = [row for device in sorted(devices, key=_order) for row in _rows(site, device, device in own | {*slots})]
    alone = _owner(machine)
    return rows if alone is None else [Held(MEASURED, alone, 1.0, machine), *rows]


def _rows(site: Site, device: str, ours: bool) -> Iterator[Held]:
    names = [device] if device.startswith(f"{CPU}-") else [f"{device}.{n}" for n in range(1, PARTS + 1)]
    files = [site.leases / f"{name}.lock" for name in names]
    taken: dict[str, list[Path]] = {}
    for file in files:
        owner = _owner(file)
        if owner is not None:
            taken.setdefault(owner, []).append(file)
    for owner, held in taken.items():
        yield Held(device, owner, len(held) / len(files), held[0])
    if not taken and ours:
        yield Held(device, None, 1.0, files[0])


def _owner(path: Path) -> str | None:
    """Owner tag of who holds a lock, empty if the holder is dead or unknown; `None` if nobody does."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return owner_in(path) or ""
    except OSError:
        return None
    return None


def _order(device: str) -> tuple[bool, str, int]:
    head, _, number = device.rpartition("-")
    slot = head == CPU and number.isdigit()
    return (slot, "" if slot else device, int(number) if slot else 0)
