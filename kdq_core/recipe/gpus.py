"""The GPUs of this machine, as the driver lists them, and the devices that a site names. Importable without torch.

KDQ counts GPUs in the order of their slots; workers count in the same order (CUDA_DEVICE_ORDER=PCI_BUS_ID).
"""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

CPU = "cpu"
DEVICE = r"^(cpu|cuda(:\d+)?)$"
UNKNOWN = "unknown"
_SMI = ("nvidia-smi", "--query-gpu=uuid,name,driver_version", "--format=csv,noheader")
_PROC = Path("/proc")


class Gpu(NamedTuple):
    """A GPU that the driver lists; `uuid` is empty where the driver does not tell it."""

    uuid: str
    model: str


def visible_gpu(device: str) -> str:
    """The number or the UUID of the GPU that `cuda` or `cuda:<n>` means under CUDA_VISIBLE_DEVICES."""
    index = int(device.partition(":")[2] or 0)
    visible = _visible()
    return visible[index] if index < len(visible) else str(index)


def described(proc: Path = _PROC) -> tuple[str | None, list[Gpu]]:
    """The driver's version, and the GPUs by slot, from the driver's files or else from `nvidia-smi`."""
    driver, gpus = _told_by_driver(proc)
    return (driver, gpus) if driver is not None and gpus else _told_by_smi()


def gpu_of(device: str, proc: Path = _PROC) -> Gpu:
    """The GPU that `device` means; one that the driver does not list, such as a part of one (MIG), has its own name."""
    asked, (_, gpus) = visible_gpu(device), described(proc)
    if asked.isdigit():
        return gpus[int(asked)] if int(asked) < len(gpus) else Gpu("", UNKNOWN)
    return next((gpu for gpu in gpus if gpu.uuid.startswith(asked)), Gpu(asked, asked))


def usable(proc: Path = _PROC) -> tuple[str, ...]:
    """What `auto` means: every visible GPU of the first one's model, or else the CPU."""
    if cpu_build() or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return (CPU,)
    count = len(_visible()) or len(described(proc)[1])
    names = [f"cuda:{n}" for n in range(count)]
    models = [gpu_of(name, proc).model for name in names]
    same = [name for name, model in zip(names, models, strict=True) if model == models[0] != UNKNOWN]
    return tuple(same) or (CPU,)


def read_devices(text: str) -> tuple[str, ...]:
    """The devices that KDQ_DEVICES names.

    Raises:
        ValueError: a text that says what is allowed.
    """
    if text.strip() == "auto":
        return usable()
    return checked([name.strip() for name in text.split(",")])


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """The same devices, if each is one and they go together.

    Raises:
        ValueError: a text that says what is allowed.
    """
    if not all(re.match(DEVICE, name) for name in names):
        raise ValueError("'auto', 'cpu', or names such as 'cuda:0,cuda:1'")
    numbers = [name if name == CPU else name.partition(":")[2] or "0" for name in names]
    if CPU in names and len(names) > 1:
        raise ValueError("'cpu' alone, or GPUs alone; for several stages on the CPU set KDQ_CPU_SLOTS")
    if len({*numbers}) < len(numbers):
        raise ValueError("each GPU once; for several stages on one GPU set KDQ_GPU_SHARE")
    return tuple(names)


def cpu_build() -> bool:
    """Whether the installed torch is a build for CPUs."""
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def _visible() -> list[str]:
    return [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]


def _told_by_driver(proc: Path) -> tuple[str | None, list[Gpu]]:
    """As `described`; without GPUs where the driver hides their UUIDs from this user, which `nvidia-smi` tells."""
    folder = proc / "driver" / "nvidia"
    try:
        version = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", (folder / "version").read_text())
        gpus = [dict(_fields(path / "information")) for path in sorted((folder / "gpus").iterdir())]
    except OSError:
        return None, []
    if any("?" in gpu.get("GPU UUID", "") for gpu in gpus):
        return None, []
    return version and version[1], [Gpu(gpu.get("GPU UUID", ""), gpu.get("Model", UNKNOWN)) for gpu in gpus]


def _fields(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


@functools.cache
def _told_by_smi() -> tuple[str | None, list[Gpu]]:
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None, []
    rows = [row for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True) if len(row) == 3]
    return (rows[0][2] if rows else None), [Gpu(uuid, name) for uuid, name, _ in rows]
