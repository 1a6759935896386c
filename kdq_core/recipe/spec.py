"""What the user asks for: the recipe, and the site it runs on.

Importable without torch. Defaults are stated here and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from kdq_core.frozen import Frozen
from kdq_core.recipe.schedule import Schedule, schedules_in
from kdq_core.recipe.site import Site as Site  # noqa: PLC0414 - the site belongs to what is asked for
from kdq_core.recipe.stages import DEFAULT_STAGES, Name, RetrySpec, StageUse
from kdq_core.recipe.student import StudentSpec
from kdq_core.recipe.teacher import CacheSpec, MemberSpec


class Use(Frozen):
    """One plug-in by name, with its options. A bare string in YAML means the plug-in with its defaults."""

    use: str = Field(description="name of the plug-in, as `kdq plugins list` shows it")
    options: dict[str, JsonValue] = Field(default={}, description="the plug-in's own fields")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value


class FitSpec(Frozen):
    """How one model is trained. One `fit()` serves teacher, student and QAT student."""

    epochs: int = Field(default=10, ge=1, le=10_000)
    batch_size: int = Field(default=64, ge=1, le=1_000_000)
    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="sgd uses Nesterov momentum 0.9")
    learning_rate: float = Field(default=2e-3, gt=0, le=10)
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="after the warm-up")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of all steps with a rising learning rate")
    clip_norm: float | None = Field(default=None, gt=0, description="largest gradient norm; none means no clipping")


class QatFitSpec(FitSpec):
    """How the quantized student is trained: a tenth of the learning rate, for a few epochs."""

    epochs: int = Field(default=3, ge=1, le=10_000)
    learning_rate: float = Field(default=2e-4, gt=0, le=10)


STUDENTS = ""
"""Stands for all inputs of the student among the names of what teachers read."""


class TeacherSpec(Frozen):
    """One teacher or several. By default the workload's, trained on hard labels."""

    fit: FitSpec = FitSpec()
    members: tuple[MemberSpec, ...] = Field(
        default=(MemberSpec(),), min_length=1, description="the teachers; the student learns from all of them together"
    )
    combine: Literal["mean", "confidence"] = Field(
        default="mean",
        description="mean: of the members' logits, by weight; confidence: for each sample, surer members count more",
    )
    inputs: tuple[str, ...] = Field(
        default=(),
        description="named inputs (`Batch.extra`) that the teachers read, in order; none: the student's inputs",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="in which they answer; auto: fp32 on a CPU, and on a GPU made for it bf16, unless what they say is "
        "to be kept as fp32. ONNX models answer in their own",
    )
    cache: CacheSpec = Field(default=CacheSpec(), description="its outputs on disk, for every student to read")

    def read_by(self, member: MemberSpec) -> tuple[str, ...]:
        """Names of the inputs one member reads, in order; `STUDENTS` for the student's."""
        return member.inputs or self.inputs or (STUDENTS,)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of all inputs the members read, each once; `STUDENTS` for the student's, `()` for those alone."""
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

    use: str = Field(description="name of the distiller")
    name: Name | None = Field(default=None, description="names its curves and tells twins apart; default: `use`")
    options: dict[str, JsonValue] = Field(
        default={}, description="the distiller's own fields; one that is a real number may have a schedule"
    )
    weight: Schedule = Field(
        default=Schedule(schedule="constant", start=1.0), description="0 to 1000, or a schedule; of all its terms"
    )
    task: str | None = Field(
        default=None, min_length=1, description="the one of the models' named outputs it is for; none: each of them"
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
        """What its curves are called."""
        return self.name or self.use.rpartition("/")[2]

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Options that change over the fit."""
        return schedules_in(self.options)

    def options_at(self, end: int) -> dict[str, JsonValue]:
        """The options as numbers, at the start (0) or the end (-1) of the fit."""
        return self.options | {name: schedule.ends[end] for name, schedule in self.schedules.items()}


class TransferSpec(Frozen):
    """A linear map of the teacher's parameters starts the student, which then holds some of them in turn."""

    layers: Literal["auto"] | tuple[tuple[str, str], ...] = Field(
        default="auto", description="`auto`: layers of the same path; or pairs `[path in student, path in teacher]`"
    )
    hold: float = Field(default=0.5, ge=0, lt=1, description="share of the transferred tensors held fixed in a round")
    rounds: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="how often others are drawn to be held, once an epoch at most",
    )

    def rounds_in(self, epochs: int) -> int:
        """The rounds there are in a fit of so many epochs."""
        return min(self.rounds, epochs)

    _check_layers = field_validator("layers", mode="before")(_tap_pairs)


class DistillSpec(Frozen):
    """The float student, trained with the teacher's outputs: by one distiller (`use`), or by several (`losses`)."""

    use: str = Field(default="logit-kd", description="name of the distiller")
    options: dict[str, JsonValue] = Field(default={}, description="the distiller's own fields")
    losses: tuple[DistillerUse, ...] = Field(
        default=(), description="several distillers, in place of `use` and `options`"
    )
    transfer: TransferSpec | None = Field(
        default=None, description="start from the teacher's parameters; none: from random ones"
    )
    fuse_views: bool = Field(
        default=False,
        description="teach with the mean of what the teacher says of all kept views of a sample, not of one",
    )
    fit: FitSpec = FitSpec()
    control: bool = Field(
        default=False, description="train a student without the teacher as well, and tell the teacher's gain"
    )

    @field_validator("options")
    @classmethod
    def _good_schedules(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        schedules_in(value)
        return value

    @model_validator(mode="after")
    def _one_form(self) -> DistillSpec:
        if self.model_fields_set == set(type(self).model_fields):
            return self  # a recipe on its way to a worker, which was checked when it was read
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
        """The distillers, in whichever form they are written."""
        return self.losses or (DistillerUse(use=self.use, options=self.options),)


Bits = Annotated[int, Field(ge=2, le=8)]


class Rule(Frozen):
    """What some layers get instead of the common bits; of several rules that match, the last one wins."""

    match: str = Field(min_length=1, description="module path with * and ?, or a type of operator such as conv")
    weights: Bits | None = Field(default=None, description="bits of the weights")
    activations: Bits | None = Field(default=None, description="bits of what the operator gives")
    skip: bool | None = Field(
        default=None, description="true: leave the operator in float; false: take it back from an earlier rule"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if self.weights is None and self.activations is None and self.skip is None:
            raise ValueError("a rule says 'weights', 'activations' or 'skip'")
        return self


class QuantizeSpec(Frozen):
    """Quantization of the distilled student. Where the quantizer trains, the teacher is still teaching."""

    use: str = Field(default="minmax-qat", description="name of the quantizer")
    options: dict[str, JsonValue] = Field(default={}, description="the quantizer's own fields")
    weights: Bits = Field(default=8, description="bits of the weights, 2 to 8")
    activations: Bits = Field(default=8, description="bits of the activations, 2 to 8")
    edges: Bits = Field(default=8, description="least bits of first and last layers: weights, inputs and outputs")
    rules: tuple[Rule, ...] = Field(default=(), description="exceptions for layers; the last one that matches wins")
    calibration_batches: int = Field(
        default=8, ge=1, le=100_000, description="training batches the ranges see before anything is rounded"
    )
    calibration_batch_size: int = Field(default=64, ge=1, le=1_000_000, description="samples of such a batch")
    equalize: bool = Field(default=False, description="cross-layer equalization before anything is rounded")
    bias_correction: bool = Field(default=False, description="correct biases for the mean error of rounded weights")
    reestimate_batch_norm: bool = Field(
        default=False, description="measure batch-norm statistics anew with rounding on, at the end"
    )
    weight_loss: float = Field(
        default=0.0, ge=0, le=1e6, description="weight of the quantization loss, mean (W - W_q)^2, beside the others"
    )
    round_bias: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="round biases as the integers will be, once batch norm stands still; auto: below 8 bits",
    )
    fit: QatFitSpec = Field(default=QatFitSpec(), description="for quantizers that train")
    taught_by: Literal["teachers", "student"] = Field(
        default="teachers",
        description="teachers: those of 'teacher'; student: the float student teaches its quantized self, with the "
        "distillers of 'distill'",
    )
    freeze_observers: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the steps after which the ranges stand still, by the last epoch; 1: never",
    )
    freeze_batch_norm: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="share of the steps after which batch-norm statistics stand still, by the last epoch; 1: never",
    )
    control: bool = Field(
        default=False, description="quantize once more without the teacher, and tell the teacher's gain"
    )


class Gate(Frozen):
    """A rule a model must meet before it may become `champion`."""

    metric: str
    of: str = Field(default="int8", description="the model it is about, as the closing table of a run names it")
    at_least: float | None = None
    at_most: float | None = None
    relative_to: str | None = Field(
        default=None, description="the bound is a factor of this model's value of the same metric"
    )
    required: bool = Field(default=False, description="a run that does not meet it fails and registers nothing")

    @model_validator(mode="after")
    def _one_bound(self) -> Gate:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a gate has exactly one of 'at_least' and 'at_most'")
        return self


class RegisterSpec(Frozen):
    """Where the int8 model is registered; the default name is the recipe's."""

    name: Name | None = None


DEFAULT_EVALUATORS = ("quality", "size", "latency", "coverage", "parity")
DEFAULT_GATES = (
    Gate(metric="top1", of="int8", at_least=0.95, relative_to="teacher"),
    Gate(metric="coverage_macs", of="int8", at_least=1.0, required=True),
    Gate(metric="parity_flips", of="int8", at_most=0),
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
        description="what is done, in order; a stage reads what the stages before it gave",
    )
    teacher: TeacherSpec = TeacherSpec()
    student: StudentSpec = StudentSpec()
    distill: DistillSpec = DistillSpec()
    quantize: QuantizeSpec = QuantizeSpec()
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
        """How the stage `title` is tried again."""
        return next((s.retry for s in self.stages if s.title == title and s.retry is not None), self.retry)

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return self.register_as.name or self.name
