"""Which instruction sets this CPU has."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_KNOWN = frozenset(
    {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm"}
)
"""The instruction sets by which torch and the runtimes choose kernels, as Linux names them."""


@cache
def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Read which of `_KNOWN` this CPU has; none if the file cannot be read, as on systems other than Linux."""
    try:
        return _KNOWN & set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return frozenset()


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the CPU's model, as the kernel gives it, or else of its kind."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.machine()
