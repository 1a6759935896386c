"""A target that knows several forms of a file and lets KDQ measure which is the fastest. Importable without torch."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, JsonValue

from kdq_core.frozen import Frozen
from kdq_core.plugins.kinds import Target

if TYPE_CHECKING:
    from torch.fx import GraphModule


class Form(Frozen):
    """A form of the file: options of the target, under a name for people."""

    name: str = Field(description="such as 'gru in float'")
    options: dict[str, JsonValue] = Field(default={}, description="the target's options that give this form")
    floats: tuple[str, ...] = Field(
        default=(), description="operators that compute in float in this form alone, as `path:type`"
    )

    def joined(self, other: Form) -> Form:
        """Both at once: lists of options are united, and of other values the second's counts."""
        options = dict(self.options)
        for name, value in other.options.items():
            before = options.get(name)
            both = isinstance(before, list) and isinstance(value, list)
            options[name] = list(dict.fromkeys([*before, *value])) if both else value  # type: ignore[misc]
        floats = tuple(dict.fromkeys((*self.floats, *other.floats)))
        return Form(name=f"{self.name}, {other.name}", options=options, floats=floats)


class PlacingTarget(Target):
    """A target that decides by measurement which operators compute in float, and which form others take.

    The stage `place` writes each form of an untrained student and measures it. What it chooses become options of this
    target, for the stages that quantize, export and measure.

    Promise: `formed` with the options of a form gives a target that keeps the promises of a target, and its files of
    one model give the same answers, but for rounding.
    """

    placement: Literal["fastest", "smallest"] = Field(
        default="fastest",
        description="fastest: operators whose int8 form KDQ measures to be slower on this machine compute in float, or "
        "take another form; their weights are stored as integers all the same. smallest: all that can is int8",
    )
    batch_size: int = Field(
        default=1, ge=1, le=65_536, description="samples in a call of the file, for which it shall be fast"
    )

    @abc.abstractmethod
    def forms(self, graph: GraphModule, *, keep_float: Sequence[str] = ()) -> tuple[Form, ...]:
        """Forms of the file that may be faster than the target's own; none if nothing is in doubt.

        The last one leaves every operator in float, so that no file need be slower than float.

        Args:
            graph: from `capture`.
            keep_float: as given to `places`.
        """

    def formed(self, options: dict[str, Any]) -> Self:
        """This target with the options of a form."""
        return type(self).model_validate({**self.model_dump(), **options}) if options else self
