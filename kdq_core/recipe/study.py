"""The sections of a recipe that make it a study of several branches. Importable without torch.

Each branch is an ordinary recipe: the file without these sections, with the values of the branch's axes put in.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from kdq_core.frozen import Frozen
from kdq_core.recipe.register import CHAMPION
from kdq_core.recipe.spec import Gate

Axes = dict[str, JsonValue]
"""Values by dotted name of a recipe's field, such as `quantize.weights`."""

_TIME = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

UNASKED = 256
"""The most branches that a matrix may have without `limits`."""
MOST = 100_000
"""The most branches that a matrix may have at all."""


class MatrixSpec(Frozen):
    """Branches as the product of axes. An axis is a field of the recipe, or a whole section, with its values."""

    over: dict[str, Annotated[tuple[JsonValue, ...], Field(min_length=1)]] = Field(
        default={}, description="values of each axis, by dotted name: `quantize.weights: [8, 4]`, `seed: [0, 1, 2]`"
    )
    include: tuple[Axes, ...] = Field(default=(), description="further branches, each with values of its own")
    exclude: tuple[Axes, ...] = Field(default=(), description="values of some axes; no branch has all of one entry")

    @model_validator(mode="after")
    def _some(self) -> MatrixSpec:
        if not self.over and not self.include:
            raise ValueError("a matrix has axes in 'over', or branches in 'include'")
        return self


class Range(Frozen):
    """Numbers between two bounds; whole ones if both bounds are whole."""

    low: int | float = Field(description="the least value")
    high: int | float = Field(description="the greatest value")
    step: int | float | None = Field(default=None, gt=0, description="distance of two values; null: any")
    log: bool = Field(default=False, description="true: draw the logarithm evenly, for values such as a learning rate")

    @property
    def wrong(self) -> str:
        """Why no value lies between the bounds; empty if some do."""
        if self.low >= self.high:
            return f"'low' is {self.low} and 'high' is {self.high}; 'low' must be below 'high'"
        if self.log and self.low <= 0:
            return f"'log' needs a 'low' above 0, and it is {self.low}"
        return "'log' and 'step' do not go together; leave one of them out" if self.log and self.step else ""


class SearchSpec(Frozen):
    """Branches that Optuna proposes one after the other, each from the results of those before."""

    space: dict[str, Annotated[tuple[JsonValue, ...], Field(min_length=1)] | Range] = Field(
        min_length=1, description="choices or a range for each axis, by dotted name of the recipe's field"
    )
    sampler: Literal["tpe", "random", "grid"] = Field(
        default="tpe", description="tpe: tree-structured Parzen estimator; random; grid: every combination once"
    )

    @field_validator("space")
    @classmethod
    def _ranges(cls, space: dict[str, tuple[JsonValue, ...] | Range]) -> dict[str, tuple[JsonValue, ...] | Range]:
        for axis, values in space.items():
            if isinstance(values, Range) and values.wrong:
                raise ValueError(f"axis {axis!r}: {values.wrong}")
        return space


class SelectSpec(Frozen):
    """Which branch to ship: of those that meet all goals, the first of the Pareto front."""

    goals: tuple[Gate, ...] = Field(default=(), description="rules that a branch must meet, written as gates are")
    minimise: tuple[str, ...] = Field(
        default=(), description="metrics to make small, the most important first, such as latency_p50_ms, bytes"
    )
    maximise: tuple[str, ...] = Field(default=(), description="metrics to make large, such as top1")
    of: str = Field(default="int8", description="the model whose metrics count, by its name in the closing table")

    @field_validator("goals")
    @classmethod
    def _at_once(cls, goals: tuple[Gate, ...]) -> tuple[Gate, ...]:
        for goal in goals:
            if goal.relative_to == CHAMPION:
                raise ValueError(
                    "a goal cannot be relative to the champion, which is judged at a promotion: write a gate"
                )
            if goal.required:
                raise ValueError("a goal needs no 'required': a branch that does not meet it is never selected")
        return goals

    @model_validator(mode="after")
    def _something(self) -> SelectSpec:
        if not self.minimise and not self.maximise:
            raise ValueError("'select' names a metric in 'minimise' or 'maximise', such as minimise: [bytes]")
        both = sorted({*self.minimise} & {*self.maximise})
        if both:
            raise ValueError(f"metric {both[0]!r} is in 'minimise' and in 'maximise'; keep one of the two")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of the Pareto front, the most important first."""
        return (*self.minimise, *self.maximise)


class LimitsSpec(Frozen):
    """When KDQ starts no further branch; it finishes the one that runs."""

    time: str | None = Field(default=None, description="wall-clock time of a run, such as 90s, 30m, 4h or 2d")
    trials: int | None = Field(default=None, ge=1, le=MOST, description="number of branches of a run")

    @field_validator("time")
    @classmethod
    def _a_time(cls, value: str | None) -> str | None:
        if value is not None and not (_TIME.fullmatch(value) and float(value[:-1]) > 0):
            raise ValueError(f"'time' is {value!r}; write a number above 0 with s, m, h or d, such as 4h")
        return value

    @model_validator(mode="after")
    def _some(self) -> LimitsSpec:
        if self.time is None and self.trials is None:
            raise ValueError("'limits' has 'time' or 'trials'")
        return self

    @property
    def seconds(self) -> float | None:
        """The limit of time in seconds."""
        return None if self.time is None else float(self.time[:-1]) * _SECONDS[self.time[-1]]


class StudySpec(Frozen):
    """The sections of a study. A file with `matrix` or `search` is one."""

    matrix: MatrixSpec | None = Field(default=None, description="branches as the product of axes; null: one branch")
    search: SearchSpec | None = Field(default=None, description="branches that Optuna proposes; null: none")
    select: SelectSpec | None = Field(default=None, description="which branch to ship; null: none is selected")
    limits: LimitsSpec | None = Field(default=None, description="when KDQ starts no further branch; null: never")

    @model_validator(mode="after")
    def _fit(self) -> StudySpec:
        if self.matrix is None and self.search is None:
            first = "select" if self.select is not None else "limits"
            raise ValueError(f"{first!r} is about branches, and the recipe has no 'matrix' or 'search'; add one")
        if self.search is not None and self.matrix is not None:
            raise ValueError("'matrix' and 'search' both make branches; leave one of them out")
        if self.search is not None and self.select is None:
            raise ValueError("'search' needs 'select', which says what a good branch is")
        endless = self.search is not None and self.search.sampler != "grid" and self.limits is None
        if endless:
            raise ValueError("'search' has no end; write limits: {trials: 40} or {time: 4h}")
        return self


FIELDS = frozenset(StudySpec.model_fields)
"""Keys of a file that make it a study."""
