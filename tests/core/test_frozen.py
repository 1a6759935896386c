"""The base of values that cross a process."""

from __future__ import annotations

import pytest

from kdq_core.frozen import Frozen


@pytest.mark.parametrize(
    "annotation", [set[str], frozenset[int] | None, tuple[frozenset[str], ...], dict[str, set[int]]]
)
def test_a_field_that_is_a_set_is_refused_since_its_order_differs_between_processes(annotation: object) -> None:
    with pytest.raises(TypeError) as caught:
        type("Mine", (Frozen,), {"__annotations__": {"names": annotation}})
    assert str(caught.value) == (
        "the field 'names' of 'Mine' is a set, whose order differs between processes, so that keys would differ too; "
        "make it a tuple"
    )


def test_ordered_fields_are_taken() -> None:
    mine = type("Mine", (Frozen,), {"__annotations__": {"names": tuple[str, ...], "counts": dict[str, int]}})
    assert mine(names=("b", "a"), counts={}).model_dump(mode="json") == {"names": ["b", "a"], "counts": {}}
