"""The precision that fits in float compute in, and why. Importable without torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from kdq_core.recipe.gpus import CPU
from kdq_core.recipe.site import Site


def precision_of(site: Site) -> Literal["fp32", "bf16"]:
    """The precision of fits in float; `auto` is fp32 on every machine.

    So CPUs with other instructions give the same student, and no student is worse unasked: `benchmarks/precision.md`
    does not show that bf16 loses less than 0.2 points.
    """
    return "bf16" if site.precision == "bf16" else "fp32"


def why(site: Site, cpu: Collection[str]) -> str:
    """Say in which precision fits in float compute, why, and whether the other one would be faster here.

    Args:
        site: where the fits run.
        cpu: instruction sets of this machine's CPU.
    """
    reason = "which KDQ_PRECISION=auto means everywhere" if site.precision == "auto" else "as KDQ_PRECISION asks"
    return f"fits in float compute in {precision_of(site)}, {reason}{_faster(site, cpu)}"


def note(site: Site, cpu: Collection[str]) -> str:
    """What a plan says: nothing if bf16 is neither asked for nor faster here."""
    return why(site, cpu) if precision_of(site) == "bf16" or _faster(site, cpu) else ""


def _faster(site: Site, cpu: Collection[str]) -> str:
    suits = site.device != CPU or "amx_bf16" in cpu
    if precision_of(site) == "bf16":
        return "" if suits else "; this CPU has no AMX, so bf16 is likely to take longer than fp32"
    if site.precision == "fp32" or not suits:
        return ""
    here = "this CPU, which has AMX" if site.device == CPU else "a GPU that computes in bf16"
    return f"; on {here}, KDQ_PRECISION=bf16 makes them faster, and rounds the factors of products to 8 bits"
