"""How KDQ trains a model, and how long. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from kdq_core.frozen import Frozen


class FitSpec(Frozen):
    """How KDQ trains one model: teacher, student or quantized student."""

    epochs: int = Field(default=10, ge=1, le=10_000)
    batch_size: int = Field(default=64, ge=1, le=1_000_000)
    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="sgd uses Nesterov momentum 0.9")
    learning_rate: float = Field(default=2e-3, gt=0, le=10)
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="course of the learning rate after the warm-up"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of all steps in which the learning rate rises")
    clip_norm: float | None = Field(default=None, gt=0, description="largest gradient norm; null: no clipping")
    devices: int = Field(
        default=1,
        ge=1,
        le=64,
        exclude_if=lambda devices: devices == 1,  # keys of fits on one device are as without the field
        description="how many devices share each batch; the gradients are those of the whole batch, up to rounding",
    )


class QatFitSpec(FitSpec):
    """How KDQ trains the quantized student: a tenth of the learning rate, for a few epochs."""

    epochs: int = Field(default=3, ge=1, le=10_000)
    learning_rate: float = Field(default=2e-4, gt=0, le=10)

    @field_validator("devices")
    @classmethod
    def _one(cls, devices: int) -> int:
        if devices > 1:
            raise ValueError("QAT runs on one device, because its observers measure whole batches; leave 'devices' out")
        return devices


class BudgetSpec(Frozen):
    """Epochs that `distill` and `quantize` share, on one learning-rate schedule: that of `distill.fit`."""

    epochs: int = Field(
        ge=2,
        le=10_000,
        description="epochs of each student in all; if a quantizer trains, the last `quantize.fit.epochs` of them",
    )
