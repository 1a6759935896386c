"""The recipe: everything a user asks of one compression.

Importable without torch. These classes are the only place that states defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from kdq_core.frozen import Frozen
from kdq_core.recipe.fit import BudgetSpec
from kdq_core.recipe.fit import FitSpec as FitSpec  # noqa: PLC0414 - callers import the fits from here too
from kdq_core.recipe.fit import QatFitSpec as QatFitSpec  # noqa: PLC0414
from kdq_core.recipe.register import CHAMPION, RegisterSpec
from kdq_core.recipe.schedule import Schedule, schedules_in
from kdq_core.recipe.site import Site as Site  # noqa: PLC0414 - callers import the site from here too
from kdq_core.recipe.stages import DEFAULT_STAGES, Name, PluginName, RetrySpec, StageUse
from kdq_core.recipe.student import StudentSpec
from kdq_core.recipe.teacher import CacheSpec, MemberSpec


class Use(Frozen):
    """One plug-in by name, with its options. A bare string in YAML means the plug-in with its defaults."""

    use: PluginName = Field(description="name of the plug-in, as `kdq plugins list` shows it")
    options: dict[str, JsonValue] = Field(default={}, description="the plug-in's own fields")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value


STUDENTS = ""
"""Among the names of a teacher's inputs: all inputs of the student."""


class TeacherSpec(Frozen):
    """One teacher or several. By default KDQ trains the workload's teacher on hard labels."""

    fit: FitSpec = FitSpec()
    members: tuple[MemberSpec, ...] = Field(
        default=(MemberSpec(),), min_length=1, description="the teachers; the student learns from all of them together"
    )
    combine: Literal["mean", "confidence"] = Field(
        default="mean",
        description="mean: weighted mean of the members' logits; confidence: the surer member counts more, by sample",
    )
    inputs: tuple[str, ...] = Field(
        default=(),
        description="named inputs (`Batch.extra`) that the teachers read, in order; empty: the student's inputs",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="precision of the teachers' answers; auto: bf16 on a GPU that supports it, unless 'cache.form' is "
        "fp32; else fp32. An ONNX file has its own precision",
    )
    cache: CacheSpec = Field(default=CacheSpec(), description="the teachers' outputs on disk, which each student reads")

    def read_by(self, member: MemberSpec) -> tuple[str, ...]:
        """Names of the inputs that one member reads, in order; `STUDENTS` means the student's inputs."""
        return member.inputs or self.inputs or (STUDENTS,)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of all inputs that the members read, each once; `()` if they read the student's inputs alone."""
        names = tuple(dict.fromkeys(name for member in self.members for name in self.read_by(member)))
        return () if names == (STUDENTS,) else names


MAX_WEIGHT = 1000.0


def _tap_pairs(value: Any) -> Any:
    pairs = value if isinstance(value, list | tuple) else ()
    good = [p for p in pairs if isinstance(p, list | tuple) and len(p) == 2 and all(isinstance(x, str) for x in p)]
    if value != "auto" and not (good and len(good) == len(pairs)):
        raise ValueError(f"{value!r} are no pairs; write 'auto', or [[path in student, path in teacher]]")
    twice = next((pair for pair in good if good.count(pair) > 1), None)
    if twice is not None:
        raise ValueError(f"{list(twice)!r} is written twice; leave one out")
    return value if value == "auto" else tuple(map(tuple, value))


class DistillerUse(Frozen):
    """One distiller among several, with its weight. A bare string in YAML means the distiller with its defaults."""

    use: PluginName = Field(description="name of the distiller")
    name: Name | None = Field(
        default=None, description="name of its curves; two uses of one distiller need two names; default: `use`"
    )
    options: dict[str, JsonValue] = Field(
        default={}, description="the distiller's own fields; a real number may have a schedule"
    )
    weight: Schedule = Field(
        default=Schedule(schedule="constant", start=1.0),
        description="factor of all its terms: 0 to 1000, or a schedule",
    )
    task: str | None = Field(
        default=None, min_length=1, description="the named output that it compares; null: each output"
    )
    taps: Literal["auto"] | tuple[tuple[str, str], ...] = Field(
        default="auto",
        description="`auto`, or pairs `[path in student, path in teacher]` of modules whose outputs are compared",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value

    @field_validator("options")
    @classmethod
    def _good_schedules(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        schedules_in(value)
        return value

    @field_validator("weight")
    @classmethod
    def _weight_in_range(cls, value: Schedule) -> Schedule:
        wrong = [end for end in value.ends if not 0 <= end <= MAX_WEIGHT]
        if wrong:
            raise ValueError(
                f"a weight is {wrong[0]}; allowed: a number, 0 to {MAX_WEIGHT:g}, also at both ends of a schedule"
            )
        return value

    _check_taps = field_validator("taps", mode="before")(_tap_pairs)

    @property
    def title(self) -> str:
        """The name of its curves."""
        return self.name or self.use.rpartition("/")[2]

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The options that are written as a schedule."""
        return schedules_in(self.options)

    def options_at(self, end: int) -> dict[str, JsonValue]:
        """The options as numbers, at the start (0) or the end (-1) of the fit."""
        return self.options | {name: schedule.ends[end] for name, schedule in self.schedules.items()}


class TransferSpec(Frozen):
    """The student starts from a linear map of the teacher's parameters; each round holds some of them fixed."""

    layers: Literal["auto"] | tuple[tuple[str, str], ...] = Field(
        default="auto", description="`auto`: layers of the same path; or pairs `[path in student, path in teacher]`"
    )
    hold: float = Field(
        default=0.5, ge=0, lt=1, description="share of the transferred tensors that a round holds fixed"
    )
    rounds: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="number of rounds; each draws anew which tensors it holds, and lasts at least one epoch",
    )

    def rounds_in(self, epochs: int) -> int:
        """The number of rounds in a fit of `epochs` epochs: one an epoch at most."""
        return min(self.rounds, epochs)

    _check_layers = field_validator("layers", mode="before")(_tap_pairs)


class DistillSpec(Frozen):
    """Training of the float student on the teacher's outputs, by one distiller (`use`) or several (`losses`)."""

    use: PluginName = Field(default="logit-kd", description="name of the distiller")
    options: dict[str, JsonValue] = Field(default={}, description="the distiller's own fields")
    losses: tuple[DistillerUse, ...] = Field(
        default=(), description="several distillers, in place of `use` and `options`"
    )
    transfer: TransferSpec | None = Field(
        default=None, description="start from the teacher's parameters; null: from random ones"
    )
    fuse_views: bool = Field(
        default=False,
        description="true: train on the teacher's mean outputs over all kept views of a sample; false: on one view's",
    )
    fit: FitSpec = FitSpec()
    control: bool = Field(
        default=False, description="also train a student without the teacher, and report what the teacher gains"
    )

    @field_validator("options")
    @classmethod
    def _good_schedules(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        schedules_in(value)
        return value

    @model_validator(mode="after")
    def _one_form(self) -> DistillSpec:
        if self.model_fields_set == set(type(self).model_fields):
            return self  # KDQ checked it when it read the file; this is the copy for a worker
        both = sorted({"use", "options"} & self.model_fields_set)
        if self.losses and both:
            raise ValueError(f"{both[0]!r} and 'losses' are two forms of one thing; move {both[0]!r} into 'losses'")
        if "losses" in self.model_fields_set and not self.losses:
            raise ValueError("'losses' is empty; name at least one distiller, or leave it out")
        names = [use.title for use in self.losses]
        twins = sorted({name for name in names if names.count(name) > 1})
        if twins:
            raise ValueError(f"distiller {twins[0]!r} is listed twice in 'losses'; give each a 'name' of its own")
        return self

    @property
    def distillers(self) -> tuple[DistillerUse, ...]:
        """The distillers of either form: `losses`, or `use` and `options`."""
        return self.losses or (DistillerUse(use=self.use, options=self.options),)


Bits = Annotated[int, Field(ge=2, le=8)]


class Rule(Frozen):
    """Other bits for some layers, or none; of several rules that match, the last one wins."""

    match: str = Field(
        min_length=1, description="module path, where * and ? are wildcards; or a type of operator, such as conv"
    )
    weights: Bits | None = Field(default=None, description="bits of the weights")
    activations: Bits | None = Field(default=None, description="bits of the operator's outputs")
    skip: bool | None = Field(
        default=None,
        description="true: leave the operator in float; false: quantize it although an earlier rule skips it",
    )

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if self.weights is None and self.activations is None and self.skip is None:
            raise ValueError("a rule says 'weights', 'activations' or 'skip'")
        return self


class QuantizeSpec(Frozen):
    """Quantization of the student. A quantizer that trains uses the distillation loss."""

    use: PluginName = Field(
        default="auto",
        description="name of the quantizer; auto: KDQ calibrates first, and trains where that loses too much or bits "
        "are few",
    )
    options: dict[str, JsonValue] = Field(default={}, description="the quantizer's own fields")
    weights: Bits = Field(default=8, description="bits of the weights, 2 to 8")
    activations: Bits = Field(default=8, description="bits of the activations, 2 to 8")
    edges: Bits = Field(default=8, description="fewest bits in the first and last layers: weights, inputs and outputs")
    rules: tuple[Rule, ...] = Field(
        default=(), description="other bits for some layers; the last rule that matches wins"
    )
    calibration_batches: int = Field(
        default=8, ge=1, le=100_000, description="number of training batches for calibration"
    )
    calibration_batch_size: int = Field(default=64, ge=1, le=1_000_000, description="samples in a calibration batch")
    equalize: bool = Field(default=False, description="cross-layer equalization, before calibration")
    bias_correction: bool = Field(
        default=False, description="correct each bias for the mean error that rounded weights cause"
    )
    reestimate_batch_norm: bool = Field(
        default=False, description="at the end, measure batch-norm statistics anew with rounding on"
    )
    weight_loss: float = Field(
        default=0.0, ge=0, le=1e6, description="weight of the quantization loss, mean (W - W_q)^2, in the total loss"
    )
    round_bias: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="round biases to the file's integers once batch norm is frozen; auto: if a layer has under 8 bits",
    )
    fit: QatFitSpec = Field(default=QatFitSpec(), description="training of the student, for quantizers that train")
    taught_by: Literal["teachers", "student"] = Field(
        default="teachers",
        description="who teaches the quantized student: the teachers of 'teacher', or the float student; both with the "
        "distillers of 'distill'",
    )
    freeze_observers: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the steps after which KDQ freezes the ranges, at the latest for the last epoch; 1: never",
    )
    freeze_batch_norm: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="share of the steps after which KDQ freezes batch-norm statistics, at the latest for the last "
        "epoch; 1: never",
    )
    control: bool = Field(
        default=False, description="also quantize without the teacher, and report what the teacher gains"
    )

    @property
    def fewest_bits(self) -> int:
        """The fewest bits that the section asks for, of weights or activations of any layer."""
        ruled = [bits for rule in self.rules for bits in (rule.weights, rule.activations) if bits is not None]
        return min(self.weights, self.activations, *ruled)


class Gate(Frozen):
    """A rule a model must meet before it may become `champion`."""

    metric: str
    of: str = Field(default="int8", description="the model to judge, by its name in the closing table of a run")
    at_least: float | None = None
    at_most: float | None = None
    relative_to: str | None = Field(
        default=None,
        description="name of a model, or champion; KDQ multiplies the bound by that model's value of the same metric",
    )
    bound: Literal["low", "high"] | None = Field(
        default=None,
        description="the end of the metric's 95 % interval to judge, `low` or `high`; null: the value itself",
    )
    required: bool = Field(
        default=False, description="true: if the gate is not met, the run fails and registers nothing"
    )

    @model_validator(mode="after")
    def _one_bound(self) -> Gate:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a gate has exactly one of 'at_least' and 'at_most'")
        if self.required and self.relative_to == CHAMPION:
            raise ValueError("a gate relative to the champion is judged at a promotion, so it cannot be 'required'")
        return self


DEFAULT_EVALUATORS = ("quality", "size", "latency", "coverage", "parity")
DEFAULT_GATES = (
    Gate(metric="top1", of="int8", at_least=0.95, relative_to="teacher"),
    Gate(metric="coverage_macs", of="int8", at_least=1.0, required=True),
    Gate(metric="parity_flips", of="int8", at_most=0, required=True),
    Gate(metric="speedup", of="int8", at_least=0.98, bound="low"),
)


class Recipe(Frozen):
    """A compression, from the data to the registered int8 model."""

    kdq: Literal[1] = Field(default=1, description="version of the recipe format")
    name: Name
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    workload: Use
    stages: tuple[StageUse, ...] = Field(
        default=tuple(StageUse(use=name) for name in DEFAULT_STAGES),
        min_length=1,
        description="the stages of a run, in order; each reads what earlier stages gave",
    )
    teacher: TeacherSpec = TeacherSpec()
    student: StudentSpec = StudentSpec()
    distill: DistillSpec = DistillSpec()
    quantize: QuantizeSpec = QuantizeSpec()
    budget: BudgetSpec | None = Field(
        default=None,
        description="epochs of `distill` and `quantize` together, in place of the epochs of `distill.fit`; null: see "
        "`budget` below",
    )
    target: Use = Use(use="onnxruntime-cpu")
    evaluate: tuple[Use, ...] = Field(default=tuple(Use(use=name) for name in DEFAULT_EVALUATORS), min_length=1)
    gates: tuple[Gate, ...] = DEFAULT_GATES
    register_as: RegisterSpec = Field(default=RegisterSpec(), alias="register")
    retry: RetrySpec = RetrySpec()

    @field_validator("stages")
    @classmethod
    def _titles_differ(cls, value: tuple[StageUse, ...]) -> tuple[StageUse, ...]:
        titles = [stage.title for stage in value]
        twins = sorted({title for title in titles if titles.count(title) > 1})
        if twins:
            raise ValueError(f"stage {twins[0]!r} is listed twice; give the second a 'name' of its own")
        return value

    @field_validator("evaluate")
    @classmethod
    def _no_twins(cls, value: tuple[Use, ...]) -> tuple[Use, ...]:
        names = [use.use for use in value]
        twins = sorted({name for name in names if names.count(name) > 1})
        if twins:
            raise ValueError(f"evaluator {twins[0]!r} is listed twice")
        return value

    def retry_of(self, title: str) -> RetrySpec:
        """How KDQ retries the stage `title`."""
        return next((s.retry for s in self.stages if s.title == title and s.retry is not None), self.retry)

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return self.register_as.name or self.name
