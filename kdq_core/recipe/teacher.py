"""The recipe's sections on where teachers come from and what is kept of them. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from kdq_core.frozen import Frozen


class NormalizeSpec(Frozen):
    """A teacher's own normalisation: its first input becomes `(x - mean) / std`, along axis 1."""

    mean: tuple[float, ...] = Field(min_length=1, description="one number, or one a channel")
    std: tuple[float, ...] = Field(min_length=1, description="one number, or one a channel; none is 0")

    @model_validator(mode="after")
    def _fits(self) -> NormalizeSpec:
        if len(self.mean) != len(self.std):
            raise ValueError(f"'mean' has {len(self.mean)} numbers and 'std' has {len(self.std)}; give both as many")
        if not all(value > 0 for value in self.std):
            raise ValueError("a 'std' is not above 0; give the standard deviation of each channel")
        return self


class MemberSpec(Frozen):
    """One teacher."""

    source: Literal["pipeline", "student", "checkpoint", "onnx", "registered"] = Field(
        default="pipeline",
        description="pipeline: the workload's teacher, trained here; student: its student, trained here on hard "
        "labels, for self-distillation; checkpoint: weights in a safetensors file; onnx: a model in ONNX Runtime; "
        "registered: the ONNX model of a version in the site's registry",
    )
    file: str | None = Field(default=None, min_length=1, description="of a checkpoint or an ONNX model")
    model: str | None = Field(
        default=None,
        pattern=r"^[^/:@]+(/[1-9][0-9]*|@[A-Za-z0-9_-]+)$",
        description="of a registered one: `NAME/VERSION`, or `NAME@ALIAS` for the version that has the alias today",
    )
    factory: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="`module:function` that makes the module a checkpoint is loaded into; none: the workload's teacher",
    )
    tasks: tuple[str, ...] = Field(
        default=(),
        description="names of outputs of an ONNX model, where the student has several; none: its first",
    )
    inputs: tuple[str, ...] = Field(
        default=(), description="named inputs (`Batch.extra`) that this teacher reads; none: those of 'teacher.inputs'"
    )
    weight: float = Field(default=1.0, gt=0, le=1000, description="beside the other members")
    normalize: NormalizeSpec | None = Field(default=None, description="its own, on top of what the workload gives")

    @model_validator(mode="after")
    def _file_where_one_is_read(self) -> MemberSpec:
        reads = self.source in ("checkpoint", "onnx")
        if reads and self.file is None:
            raise ValueError(f"a teacher from {self.source!r} needs a 'file'")
        if not reads and self.file is not None:
            raise ValueError(f"a teacher from {self.source!r} reads no 'file'; write source: checkpoint or onnx")
        if self.source == "registered" and self.model is None:
            raise ValueError("a teacher from 'registered' needs a 'model', such as digits/3 or digits@champion")
        if self.source != "registered" and self.model is not None:
            raise ValueError(f"a teacher from {self.source!r} reads no 'model'; write source: registered")
        if self.factory is not None and self.source != "checkpoint":
            raise ValueError(f"a teacher from {self.source!r} takes no 'factory'; only a checkpoint does")
        if self.tasks and self.source not in ("onnx", "registered"):
            raise ValueError(f"a teacher from {self.source!r} takes no 'tasks'; its module names its outputs itself")
        return self

    @property
    def trained(self) -> bool:
        """Whether it is trained in this pipeline."""
        return self.source in ("pipeline", "student")


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
    features: bool = Field(
        default=False,
        description="keep, beside the logits, what the teacher's tapped modules give, where a distiller compares "
        "features; false: the teacher then runs beside every student",
    )
    limit_gb: float = Field(default=10.0, gt=0, le=1e6, description="a larger cache is refused before it is built")

    @model_validator(mode="after")
    def _kept_where_anything_is(self) -> CacheSpec:
        if self.features and not self.enabled:
            raise ValueError("'features' are to be kept, but the cache is not 'enabled'; leave one of the two out")
        return self
