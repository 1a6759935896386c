"""The parts of a key beside code, recipe and data: the machine, Python, and the environment.

The key holds the variables below if they are set. They choose the instruction set, the precision of products, the
number of threads or the algorithm; variables with such a prefix that only print, log or count are left out. The key
does not hold CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS, MKL_NUM_THREADS, PYTHONHASHSEED and CUBLAS_WORKSPACE_CONFIG,
because KDQ sets them for every stage; the number of threads is a part of its own. It does not hold ACCELERATE_*,
because KDQ hides them from stages, nor variables that only change speed, such as GOMP_SPINCOUNT, or how memory is
allocated.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

from pydantic import JsonValue

from kdq_core.errors import RecipeError
from kdq_core.plan.cpu import instruction_sets
from kdq_core.plan.precision import precision_of
from kdq_core.plugins.installed import version_of
from kdq_core.recipe.gpus import UNKNOWN, described, gpu_of, visible_gpu
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
_GPU_FILES = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")
"""Device files of GPUs: NVIDIA's, those of its boards (Jetson), of Windows' Linux (WSL), and of AMD's ROCm."""


def machine_parts(site: Site, *, proc: Path = Path("/proc")) -> dict[str, JsonValue]:
    """The parts of a key that say where a stage ran: kind of device, threads, instruction set, variables that are set.

    KDQ imports no torch here.

    Args:
        site: device, precision and threads of the stage, as the stage sees them.
        proc: the folder in which the kernel and the driver describe the machine.

    Returns:
        `kind`, `precision`, `threads`, `machine`, `isa` and `python`; for CUDA also `gpu` and `driver`; `environment`
        only if a held variable is set.
    """
    kind = site.device.partition(":")[0]
    held: dict[str, JsonValue] = {name: value for name, value in sorted(os.environ.items()) if _is_held(name)}
    return {
        "kind": kind,
        "precision": precision_of(site),
        "threads": site.threads,
        "machine": platform.machine(),
        "isa": " ".join(sorted(instruction_sets(proc / "cpuinfo"))),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        **(_gpu(site.device, proc) if kind == "cuda" else {}),
        **({"environment": held} if held else {}),
    }


def check_devices(site: Site, *, proc: Path = Path("/proc"), dev: Path = Path("/dev")) -> None:
    """Refuse devices that cannot be there or do not go together, before anything runs; see `check_gpu`.

    Raises:
        RecipeError: a device is not there, or the GPUs are of several models.
    """
    for device in site.all_devices:
        check_gpu(device, proc=proc, dev=dev)
    models = {device: gpu_of(device, proc).model for device in site.all_devices if device != "cpu"}
    if len({*models.values()}) > 1:
        named = ", ".join(f"{device!r} is {model!r}" for device, model in models.items())
        raise RecipeError(
            f"KDQ_DEVICES names GPUs of several models: {named}; name those of one model, because keys hold the model: "
            "a result would depend on which of them is free"
        )


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
    _, gpus = described(proc)
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
    """Model and driver of the GPU."""
    return {"gpu": gpu_of(device, proc).model, "driver": described(proc)[0] or UNKNOWN}
