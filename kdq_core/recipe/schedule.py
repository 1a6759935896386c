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
    """A number that changes over the steps of a fit. A bare number in YAML means one that does not."""

    schedule: Literal["constant", "linear", "cosine", "gap"] = Field(
        default="linear",
        description="over the share of the fit's steps; gap: over what student and teacher disagree in",
    )
    start: float = Field(allow_inf_nan=False, description="at the first step; for gap, where the models share nothing")
    end: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="at the last step; for gap, where they agree; constant has none",
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
        """The values between which all others lie."""
        return (self.start,) if self.schedule == "constant" or self.end is None else (self.start, self.end)

    def at(self, share: float, distance: float) -> float:
        """The value in force.

        Args:
            share: of the fit's steps, 0 at the first and 1 at the last.
            distance: between student and teacher, 1 where they share nothing and 0 where they agree.
        """
        if self.schedule == "constant" or self.end is None:
            return self.start
        left = {"linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share)), "gap": distance}[self.schedule]
        return self.end + (self.start - self.end) * left


def schedules_in(options: Mapping[str, JsonValue]) -> dict[str, Schedule]:
    """Options that change over a fit.

    Raises:
        WrongPartsError: some of them are no schedules.
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
