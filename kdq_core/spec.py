"""What the user asks for: the recipe, and the site it runs on.

Importable without torch. Defaults are stated here and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from kdq_core.errors import RecipeError, listing
from kdq_core.frozen import Frozen

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Role = Literal["teacher", "student", "int8"]


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


class TeacherSpec(Frozen):
    """The teacher comes from the workload and is trained on hard labels."""

    fit: FitSpec = FitSpec()


class DistillSpec(Frozen):
    """The float student, trained with the teacher's outputs."""

    use: str = Field(default="logit-kd", description="name of the distiller")
    options: dict[str, JsonValue] = Field(default={}, description="the distiller's own fields")
    fit: FitSpec = FitSpec()


class QuantizeSpec(Frozen):
    """Quantization-aware training with the same distillation loss: the teacher is still teaching."""

    use: str = Field(default="minmax-qat", description="name of the quantizer")
    options: dict[str, JsonValue] = Field(default={}, description="the quantizer's own fields")
    fit: QatFitSpec = QatFitSpec()
    freeze_observers: float = Field(
        default=0.5, ge=0, le=1, description="share of the epochs after which the ranges stand still"
    )
    freeze_batch_norm: float = Field(
        default=0.7, ge=0, le=1, description="share of the epochs after which batch-norm statistics stand still"
    )


class Gate(Frozen):
    """A rule a model must meet before it may become `champion`."""

    metric: str
    of: Role = "int8"
    at_least: float | None = None
    at_most: float | None = None
    relative_to: Role | None = Field(
        default=None, description="the bound is a factor of this model's value of the same metric"
    )

    @model_validator(mode="after")
    def _one_bound(self) -> Gate:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a gate has exactly one of 'at_least' and 'at_most'")
        return self


class RegisterSpec(Frozen):
    """Where the int8 model is registered; the default name is the recipe's."""

    name: Name | None = None


class RetrySpec(Frozen):
    """How often a stage is tried again after a transient error, and how long one try may take."""

    attempts: int = Field(default=3, ge=1, le=20, description="tries in all; wrong requests are never retried")
    backoff_seconds: float = Field(default=2.0, ge=0, le=3600, description="wait before the second try; then doubled")
    stage_timeout_seconds: float = Field(default=86_400.0, gt=0, description="a stage running longer is killed")


DEFAULT_EVALUATORS = ("quality", "size", "latency", "coverage", "parity")
DEFAULT_GATES = (
    Gate(metric="top1", of="int8", at_least=0.95, relative_to="teacher"),
    Gate(metric="coverage_macs", of="int8", at_least=1.0),
    Gate(metric="parity_flips", of="int8", at_most=0),
)


class Recipe(Frozen):
    """A compression, from the data to the registered int8 model."""

    kdq: Literal[1] = Field(default=1, description="version of the recipe format")
    name: Name
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    workload: Use
    teacher: TeacherSpec = TeacherSpec()
    distill: DistillSpec = DistillSpec()
    quantize: QuantizeSpec = QuantizeSpec()
    target: Use = Use(use="onnxruntime-cpu")
    evaluate: tuple[Use, ...] = Field(default=tuple(Use(use=name) for name in DEFAULT_EVALUATORS), min_length=1)
    gates: tuple[Gate, ...] = DEFAULT_GATES
    register_as: RegisterSpec = Field(default=RegisterSpec(), alias="register")
    retry: RetrySpec = RetrySpec()

    @field_validator("evaluate")
    @classmethod
    def _no_twins(cls, value: tuple[Use, ...]) -> tuple[Use, ...]:
        names = [use.use for use in value]
        twins = sorted({name for name in names if names.count(name) > 1})
        if twins:
            raise ValueError(f"evaluator {twins[0]!r} is listed twice")
        return value

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return self.register_as.name or self.name


ENVIRONMENT = {
    "home": "KDQ_HOME",
    "device": "KDQ_DEVICE",
    "threads": "KDQ_THREADS",
    "precision": "KDQ_PRECISION",
    "tracking_uri": "KDQ_TRACKING_URI",
    "prefect_api": "PREFECT_API_URL",
}
"""The environment variable behind each field of `Site`."""


class Site(Frozen):
    """Where recipes run: one folder for all state, one device, the services to use."""

    home: Path = Field(description="everything KDQ writes lies below this folder")
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="'cpu', 'cuda' or 'cuda:<number>'")
    threads: int = Field(default=2, ge=1, le=1024, description="CPU threads of a stage; part of every key")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="autocast of the float fits on CUDA")
    tracking_uri: str | None = Field(default=None, description="MLflow; default: SQLite below `home`")
    prefect_api: str | None = Field(default=None, description="Prefect; default: the site's own server")

    @classmethod
    def from_environment(cls, **overrides: Any) -> Site:
        """Read KDQ_HOME, KDQ_DEVICE, KDQ_THREADS, KDQ_PRECISION, KDQ_TRACKING_URI and PREFECT_API_URL.

        Args:
            **overrides: fields that win over the environment; `None` means "not given".

        Raises:
            RecipeError: a value is none that its field allows.
        """
        defaults: dict[str, Any] = {"home": ".kdq", "threads": min(os.cpu_count() or 1, 8)}
        found = {name: os.environ.get(variable) for name, variable in ENVIRONMENT.items()}
        given = {name: value for name, value in overrides.items() if value is not None}
        fields = defaults | {name: value for name, value in found.items() if value} | given
        try:
            fields["home"] = Path(fields["home"]).expanduser().resolve()
        except RuntimeError as error:  # the home of an unknown user, or a circle of links
            subject = _site_subject("home", given)
            raise RecipeError(
                f"{subject} is {str(fields['home'])!r}; allowed: the path of a folder ({str(error).rstrip('.')})"
            ) from None
        try:
            return cls(**fields)
        except ValidationError as error:
            raise RecipeError("\n".join(_site_problems(error, given))) from None

    @property
    def store(self) -> Path:
        """Folder of the content-addressed store."""
        return self.home / "store"

    @property
    def mlflow_uri(self) -> str:
        """The tracking URI in force."""
        return self.tracking_uri or f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}"


def _site_subject(name: str, given: Mapping[str, Any]) -> str:
    """What the user wrote the field `name` of the site in."""
    return f"the site's {name!r}" if name in given or name not in ENVIRONMENT else ENVIRONMENT[name]


def _site_problems(error: ValidationError, given: Mapping[str, Any]) -> Iterator[str]:
    from kdq_core.explain import allowed

    schema = Site.model_json_schema()
    for detail in error.errors():
        name = str(detail["loc"][0])
        field = schema["properties"].get(name)
        if field is None:
            yield f"a site has no field {name!r}; it has: {listing(ENVIRONMENT)}"
            continue
        words = field["description"] if "pattern" in field else allowed(field, schema)
        yield f"{_site_subject(name, given)} is {detail['input']!r}; allowed: {words}"
