"""The recipe's sections on teachers: where each comes from, and which outputs KDQ keeps. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from kdq_core.frozen import Frozen
from kdq_core.recipe.student import USER_CODE


class NormalizeSpec(Frozen):
    """Normalisation for one teacher: its first input becomes `(x - mean) / std`, along axis 1."""

    mean: tuple[float, ...] = Field(min_length=1, description="one number for all channels, or one for each channel")
    std: tuple[float, ...] = Field(
        min_length=1, description="one number for all channels, or one for each channel; each above 0"
    )

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
        description="pipeline: KDQ trains the workload's teacher; student: KDQ trains the workload's student on hard "
        "labels as teacher (self-distillation); checkpoint: weights in a safetensors file; onnx: an ONNX file, which "
        "ONNX Runtime runs; registered: the ONNX file of a model version in the site's registry",
    )
    file: str | None = Field(default=None, min_length=1, description="path of the checkpoint or the ONNX file")
    model: str | None = Field(
        default=None,
        pattern=r"^[^/:@]+(/[1-9][0-9]*|@[A-Za-z0-9_-]+)$",
        description="for `registered`: `NAME/VERSION`, or `NAME@ALIAS`, which KDQ resolves when the run starts",
    )
    factory: str | None = Field(
        default=None,
        pattern=USER_CODE,
        description="`module:function` or `file.py:function` that makes the module for a checkpoint's weights; null: "
        "the workload's teacher",
    )
    tasks: tuple[str, ...] = Field(
        default=(),
        description="outputs of an ONNX file to use, by name, if the student has several; empty: the first output",
    )
    inputs: tuple[str, ...] = Field(
        default=(), description="named inputs (`Batch.extra`) that this teacher reads; empty: those of 'teacher.inputs'"
    )
    weight: float = Field(default=1.0, gt=0, le=1000, description="weight of this teacher among the members")
    normalize: NormalizeSpec | None = Field(
        default=None, description="normalisation of this teacher's input, after the workload's own"
    )

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
        """Whether this run trains it."""
        return self.source in ("pipeline", "student")


class CacheSpec(Frozen):
    """The teacher's kept outputs: KDQ computes them once; each student and quantized student reads them."""

    enabled: bool = Field(
        default=True, description="true: keep the outputs on disk; false: run the teacher in each fit"
    )
    views: int = Field(
        default=4,
        ge=1,
        le=10_000,
        description="how many augmented views of each sample to keep; epoch e (from 0) uses view e % views",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="seed of the augmentation, also without a cache")
    form: Literal["fp16", "fp32"] = Field(default="fp16", description="number format of the kept outputs")
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="keep the k largest probabilities and the sum of the others; null: keep all logits",
    )
    features: bool = Field(
        default=False,
        description="true: also keep the outputs of the teacher's tapped modules; false: the teacher runs in each fit "
        "whose distiller compares features",
    )
    limit_gb: float = Field(
        default=10.0,
        gt=0,
        le=1e6,
        description="largest size of the cache; KDQ refuses a larger one before it computes it",
    )

    @model_validator(mode="after")
    def _kept_where_anything_is(self) -> CacheSpec:
        if self.features and not self.enabled:
            raise ValueError("'features' are to be kept, but the cache is not 'enabled'; leave one of the two out")
        return self
