"""Numbers that change over the steps of a fit, as recipes write them. Importable without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from kdq_core.errors import WrongPartsError
from kdq_core.frozen import Frozen

SCHEDULE_EXAMPLE = "{schedule: linear, start: 1.0, end: 0.0}"


class Schedule(Frozen):
    """A number that may change over the steps of a fit. A bare number in YAML means a constant."""

    schedule: Literal["constant", "linear", "cosine", "gap"] = Field(
        default="linear",
        description="linear, cosine: follows the share of steps done; gap: follows how much student and teacher differ",
    )
    start: float = Field(
        allow_inf_nan=False, description="value at the first step; for gap, the value for models that fully disagree"
    )
    end: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="value at the last step; for gap, the value for models that agree; constant: leave it out",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"schedule": "constant", "start": value}
        if isinstance(value, cls | dict):
            return value
        raise ValueError(f"{value!r} is neither a number nor a schedule; write one as {SCHEDULE_EXAMPLE}")

    @model_validator(mode="after")
    def _has_an_end(self) -> Schedule:
        if self.schedule == "constant" and self.end is not None:
            raise ValueError(f"schedule 'constant' has no 'end'; leave it out, or write it as {SCHEDULE_EXAMPLE}")
        if self.schedule != "constant" and self.end is None:
            raise ValueError(f"schedule {self.schedule!r} needs an 'end'; write it as {SCHEDULE_EXAMPLE}")
        return self

    @property
    def ends(self) -> tuple[float, ...]:
        """The values at start and end; all others lie between them."""
        return (self.start,) if self.schedule == "constant" or self.end is None else (self.start, self.end)

    def at(self, share: float, distance: float) -> float:
        """Give the value at one point of the fit.

        Args:
            share: how much of the fit is done, 0 at the first step and 1 at the last.
            distance: how far student and teacher disagree, from 1 (fully) to 0 (not at all).
        """
        if self.schedule == "constant" or self.end is None:
            return self.start
        left = {"linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share)), "gap": distance}[self.schedule]
        return self.end + (self.start - self.end) * left


def schedules_in(options: Mapping[str, JsonValue]) -> dict[str, Schedule]:
    """Find the options that are written as a schedule.

    Raises:
        WrongPartsError: a schedule is wrong.
    """
    found: dict[str, Schedule] = {}
    wrong: dict[str, ValidationError] = {}
    for name, option in options.items():
        if isinstance(option, dict) and "schedule" in option:
            try:
                found[name] = Schedule.model_validate(option, strict=True)
            except ValidationError as error:
                wrong[name] = error
    if wrong:
        raise WrongPartsError(Schedule, wrong)
    return found
