"""The parts of a key beside code, recipe and data: the machine, Python, and the environment.

The key holds the variables below if they are set. They choose the instruction set, the precision of products, the
number of threads or the algorithm; variables with such a prefix that only print, log or count are left out. The key
does not hold CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS, MKL_NUM_THREADS, PYTHONHASHSEED and CUBLAS_WORKSPACE_CONFIG,
because KDQ sets them for every stage; the number of threads is a part of its own. It does not hold ACCELERATE_*,
because KDQ hides them from stages, nor variables that only change speed, such as GOMP_SPINCOUNT, or how memory is
allocated.
"""

from __future__ import annotations

import csv
import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from kdq_core.errors import RecipeError
from kdq_core.plan.cpu import instruction_sets
from kdq_core.plugins.installed import version_of
from kdq_core.recipe.site import Site

HELD = frozenset({
    "ATEN_CPU_CAPABILITY", "CUBLASLT_WORKSPACE_SIZE", "GLIBC_TUNABLES", "GOTO_NUM_THREADS", "MKL_CBWR",
    "MKL_DISABLE_FAST_MM", "MKL_DOMAIN_NUM_THREADS", "MKL_DYNAMIC", "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_STRIPES",
    "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "NVIDIA_TF32_OVERRIDE", "OMP_DYNAMIC", "OMP_THREAD_LIMIT",
    "OPENBLAS_BLOCK_FACTOR", "OPENBLAS_CORETYPE", "OPENBLAS_DEFAULT_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_CUBLASLT_UNIFIED_WORKSPACE",
    "TORCH_CUDNN_USE_HEURISTIC_MODE_B", "TORCH_CUDNN_V8_API_DISABLED", "TORCH_LINALG_PREFER_CUSOLVER",
    "TORCH_LINALG_PREFER_MAGMA", "TORCH_LINEAR_FLATTEN_3D", "TORCH_MKLDNN_MATMUL_MIN_DIM",
    "TORCH_MKLDNN_MATMUL_MIN_SIZE",
})  # fmt: skip
"""Variables that results may depend on."""
HELD_PREFIXES = ("ONEDNN_", "DNNL_", "FBGEMM_", "CUBLAS_EMULAT", "CUBLAS_FIXEDPOINT", "OV_CPU_", "ORT_MLAS_")
_ONLY_TELL = re.compile(r"VERBOSE|_LOG|JIT_?(DUMP|PROFILE)|CACHE_CAPACITY|_STATS_|_DEBUG$")
_SMI = ("nvidia-smi", "--query-gpu=uuid,name,driver_version", "--format=csv,noheader")
_UNKNOWN = "unknown"
_GPU_FILES = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")
"""Device files of GPUs: NVIDIA's, those of its boards (Jetson), of Windows' Linux (WSL), and of AMD's ROCm."""


def machine_parts(site: Site, *, proc: Path = Path("/proc")) -> dict[str, JsonValue]:
    """The parts of a key that say where a stage ran: kind of device, threads, instruction set, variables that are set.

    KDQ imports no torch here. It counts GPUs in the order of their slots, as the driver lists them; workers count in
    the same order (CUDA_DEVICE_ORDER=PCI_BUS_ID).

    Args:
        site: device, precision and threads of the stage.
        proc: the folder in which the kernel and the driver describe the machine.

    Returns:
        `kind`, `precision`, `threads`, `machine`, `isa` and `python`; for CUDA also `gpu` and `driver`; `environment`
        only if a held variable is set.
    """
    kind = site.device.partition(":")[0]
    held: dict[str, JsonValue] = {name: value for name, value in sorted(os.environ.items()) if _is_held(name)}
    return {
        "kind": kind,
        "precision": site.precision,
        "threads": site.threads,
        "machine": platform.machine(),
        "isa": " ".join(sorted(instruction_sets(proc / "cpuinfo"))),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        **(_gpu(site.device, proc) if kind == "cuda" else {}),
        **({"environment": held} if held else {}),
    }


def visible_gpu(device: str) -> str:
    """The number or the UUID of the GPU that `cuda` or `cuda:<n>` means under CUDA_VISIBLE_DEVICES."""
    index = int(device.partition(":")[2] or 0)
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[index] if index < len(visible) else str(index)


def check_gpu(device: str, *, proc: Path = Path("/proc"), dev: Path = Path("/dev")) -> None:
    """Refuse a GPU that cannot be there, before anything runs; KDQ imports no torch here.

    Args:
        device: the site's device.
        proc: the folder in which the driver describes the GPUs.
        dev: the folder of the machine's devices.

    Raises:
        RecipeError: torch is a build for CPUs, the environment hides the GPU, the driver lists fewer, or there is no
            driver and no device file.
    """
    if device == "cpu":
        return
    asked, torch = f"the device {device!r} was asked for, but", version_of("torch") or ""
    if torch.endswith("+cpu"):
        raise RecipeError(f"{asked} torch {torch} is a build for CPUs; set KDQ_DEVICE=cpu, or install a CUDA build")
    _, gpus = _described(proc)
    number = visible_gpu(device)
    if number.startswith("-"):
        raise RecipeError(
            f"{asked} CUDA_VISIBLE_DEVICES is {number!r}, which hides all; set KDQ_DEVICE=cpu, or unset it"
        )
    if gpus and number.isdigit() and int(number) >= len(gpus):
        there = "1 GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"
        raise RecipeError(f"{asked} the driver lists {there}; set KDQ_DEVICE=cpu, or a number below {len(gpus)}")
    if not gpus and not any(found for name in _GPU_FILES for found in dev.glob(name)):
        raise RecipeError(f"{asked} this machine has no driver of a GPU; set KDQ_DEVICE=cpu, or install a driver")


def _is_held(name: str) -> bool:
    return name in HELD or (name.startswith(HELD_PREFIXES) and not _ONLY_TELL.search(name))


def _gpu(device: str, proc: Path) -> dict[str, JsonValue]:
    """Model and driver; a GPU that the driver does not list, such as a part of one (MIG), counts by its own name."""
    driver, gpus = _described(proc)
    asked = visible_gpu(device)
    if asked.isdigit():
        model = gpus[int(asked)][1] if int(asked) < len(gpus) else _UNKNOWN
    else:
        model = next((model for uuid, model in gpus if uuid.startswith(asked)), asked)
    return {"gpu": model, "driver": driver or _UNKNOWN}


def _described(proc: Path) -> tuple[str | None, list[tuple[str, str]]]:
    """The driver's version, and UUID and model of each GPU, from the driver's files or else from `nvidia-smi`."""
    driver, gpus = _told_by_driver(proc)
    return (driver, gpus) if driver is not None and gpus else _told_by_smi()


def _told_by_driver(proc: Path) -> tuple[str | None, list[tuple[str, str]]]:
    """The driver's version, and UUID and model of each GPU by slot."""
    folder = proc / "driver" / "nvidia"
    try:
        version = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", (folder / "version").read_text())
        gpus = [dict(_fields(path / "information")) for path in sorted((folder / "gpus").iterdir())]
    except OSError:
        return None, []
    return version and version[1], [(gpu.get("GPU UUID", ""), gpu.get("Model", _UNKNOWN)) for gpu in gpus]


def _fields(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


@functools.cache
def _told_by_smi() -> tuple[str | None, list[tuple[str, str]]]:
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None, []
    rows = [row for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True) if len(row) == 3]
    return (rows[0][2] if rows else None), [(uuid, name) for uuid, name, _ in rows]
