"""The recipe's section on what is kept of a teacher. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kdq_core.frozen import Frozen


class CacheSpec(Frozen):
    """The teacher's outputs, computed once and read by every student and by the quantized one."""

    enabled: bool = Field(default=True, description="false: the teacher runs beside every student")
    views: int = Field(
        default=4,
        ge=1,
        le=10_000,
        description="augmented views kept of each sample; epoch e, from 0, takes e % views",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="of the views, with and without a cache")
    form: Literal["fp16", "fp32"] = Field(default="fp16", description="how outputs are stored")
    top_k: int | None = Field(
        default=None, ge=1, description="keep the largest k logits and the probability left for all others; none: all"
    )
    limit_gb: float = Field(default=10.0, gt=0, le=1e6, description="a larger cache is refused before it is built")
