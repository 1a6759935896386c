"""Which instruction sets this CPU has."""

from __future__ import annotations

from pathlib import Path

_KNOWN = frozenset(
    {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm"}
)
"""Those that kernels of torch and of the runtimes are chosen by, as Linux names them."""


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Those that results or speed depend on; none where the file cannot be read, as on other systems than Linux."""
    try:
        return _KNOWN & set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return frozenset()
