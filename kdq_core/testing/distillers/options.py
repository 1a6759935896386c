"""Makes the same plug-in with other options: at the ends of their ranges, and with weights above 0."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from kdq_core.testing.distillers.calls import asked
from kdq_core.testing.distillers.models import Subject

STEP = 1e-6


def lifted(subject: Subject) -> Iterator[Subject]:
    """Yield the plug-in, and a copy whose options of 0 have their default, or a number above 0 if the default is 0."""
    yield subject
    raised = {}
    for name, (_, top) in numbers(subject).items():
        if getattr(subject.distiller, name) == 0:
            default = type(subject.distiller).model_fields[name].default
            usual = isinstance(default, int | float) and default != 0
            raised[name] = default if usual else min(1.0, top)
    other = with_fields(subject, raised) if raised else None
    if other:
        yield other


def ends(subject: Subject) -> Iterator[tuple[str, float, float]]:
    """Yield each finite end of the range of a numeric field: the field's name, the end, and a number just inside."""
    for name, (low, high) in numbers(subject).items():
        for end, inwards in ((low, 1), (high, -1)):
            if math.isfinite(end):
                yield name, end, end + inwards * min(STEP * (abs(end) or 1.0), (high - low) / 2)


def numbers(subject: Subject) -> dict[str, tuple[float, float]]:
    """Give the smallest and largest value of each field that is a number; infinite if the bound itself is excluded."""
    found = {}
    for name, field in _fields(subject).items():
        form = _number(field)
        if form is not None:
            found[name] = (form.get("minimum", -math.inf), form.get("maximum", math.inf))
    return found


def within(subject: Subject, name: str) -> tuple[float, float] | None:
    """Give two values of a field that is a number, near its bounds and inside them; `None` if there is no such field.

    A bound that is excluded counts as 1 % inside.
    """
    form = _number(_fields(subject).get(name, {}))
    if form is None:
        return None
    low = form.get("minimum", form.get("exclusiveMinimum", -math.inf) + abs(form.get("exclusiveMinimum", 0.0)) / 100)
    high = form.get("maximum", form.get("exclusiveMaximum", math.inf) - abs(form.get("exclusiveMaximum", 0.0)) / 100)
    return low, high


def _fields(subject: Subject) -> dict[str, Any]:
    with asked(subject, f"the options of {subject.name} should have a JSON schema", ""):
        fields: dict[str, Any] = type(subject.distiller).model_json_schema(by_alias=False).get("properties", {})
    return fields


def _number(field: Mapping[str, Any]) -> Mapping[str, Any] | None:
    forms = [form for form in (field, *field.get("anyOf", ())) if form.get("type") == "number"]
    return forms[0] if forms else None


def with_fields(subject: Subject, values: Mapping[str, float]) -> Subject | None:
    """Give the same plug-in with some options changed, validated anew; `None` if the plug-in refuses them."""
    distiller = subject.distiller
    with asked(subject, f"{subject.name} should take or refuse {written(values)}", ""):
        try:
            return replace(subject, distiller=type(distiller).model_validate({**distiller.model_dump(), **values}))
        except ValidationError:
            return None


def written(values: Mapping[str, float]) -> str:
    """Format options as in a call."""
    return ", ".join(f"{name}={value:g}" for name, value in values.items())
