"""The base of everything that crosses a process."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable, strictly checked value: no unknown fields, no change after creation.

    Raises:
        TypeError: when a class is made with a field that is a set. Its order in JSON would differ between processes,
            and so would keys and digests.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, serialize_by_alias=True, protected_namespaces=()
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a field that is a set."""
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if any(isinstance(part, type) and issubclass(part, Set) for part in _parts(field.annotation)):
                raise TypeError(
                    f"the field {name!r} of {cls.__name__!r} is a set, whose order differs between processes, so that "
                    "keys would differ too; make it a tuple"
                )


def _parts(annotation: Any) -> Iterator[Any]:
    """The types inside of an annotation."""
    yield get_origin(annotation) or annotation
    for part in get_args(annotation):
        yield from _parts(part)
