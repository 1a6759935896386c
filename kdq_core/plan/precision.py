"""The precision that fits in float compute in, and why. Importable without torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from kdq_core.recipe.gpus import CPU
from kdq_core.recipe.site import Site

BF16_IN_HARDWARE = frozenset({"amx_bf16", "avx512_bf16"})
"""Instruction sets of CPUs that multiply bf16 at all; it is faster than fp32 for sure only with the first."""


def precision_of(site: Site) -> Literal["fp32", "bf16"]:
    """The precision that the site asks for; `auto` is fp32 on every machine.

    So a recipe gives the same student on CPUs with other instructions; benchmarks/precision.md has what bf16 costs.
    """
    return "bf16" if site.precision == "bf16" else "fp32"


def why(site: Site, cpu: Collection[str]) -> str:
    """Name the precision of fits in float, why it is that, and what it means for speed here.

    Args:
        site: where the fits run.
        cpu: instruction sets of this machine's CPU.
    """
    half, asked = precision_of(site) == "bf16", site.precision != "auto"
    by = f"KDQ_PRECISION={site.precision}" if asked else "KDQ_PRECISION is not set"
    return f"fits in float compute in {'bf16' if half else 'fp32'} ({by}){_speed(site, cpu, half=half, asked=asked)}"


def _speed(site: Site, cpu: Collection[str], *, half: bool, asked: bool) -> str:
    if half:
        if site.device != CPU or "amx_bf16" in cpu:
            return ""
        why_slow = "has bf16, but no AMX" if BF16_IN_HARDWARE.intersection(cpu) else "has no bf16"
        may = "may compute" if BF16_IN_HARDWARE.intersection(cpu) else "computes"
        return f"; this CPU, which {why_slow}, {may} bf16 slower than fp32"
    if asked:
        return ""
    if site.device != CPU:
        return "; KDQ_PRECISION=bf16 makes them faster on a GPU that computes in bf16, and rounds products to 8 bits"
    if "amx_bf16" in cpu:
        return "; KDQ_PRECISION=bf16 makes them faster on this CPU, which has AMX, and rounds products to 8 bits"
    return ""


def note(site: Site, cpu: Collection[str]) -> str:
    """What a plan says: nothing if bf16 is neither asked for nor faster here."""
    said = why(site, cpu)
    return said if precision_of(site) == "bf16" or ";" in said else ""
