"""The family of records: small values that stages take and give. Each class of records has its own `type`.

The family is open: a guest's record is a subclass of `Record`, or of a house record, with a new `type`. A process that
has not imported that class reads such a record as an `UnknownRecord`, with the same digest.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, PlainSerializer, SerializeAsAny, ValidationInfo, field_validator
from pydantic_core import PydanticUndefined

from kdq_core.errors import PluginError
from kdq_core.frozen import Frozen

FAMILY: dict[str, type[Record]] = {}
"""The classes of records that this process has imported, by `type`."""


class Record(Frozen):
    """The result of a stage. A subclass states its type: `type: Literal["pruned-student"] = "pruned-student"`.

    A field `timings` is for measured times. It does not count for the digest of the entry, so stages that read the
    record stay cached if it is measured again with the same other fields.

    Raises:
        PluginError: on definition of a subclass, if another class has the same `type`.
    """

    type: str

    def files_named(self) -> tuple[str, ...]:
        """Files that the record points at, relative to the folder of its entry."""
        return ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Add the class to the family under its `type`; a class without a `type` is only a base for others."""
        super().__pydantic_init_subclass__(**kwargs)
        name = type_of(cls)
        if not name:
            return
        known = FAMILY.get(name)
        if known is not None and _path(known) != _path(cls):
            raise PluginError(
                f"two records have the type {name!r}: {_path(known)} and {_path(cls)}; "
                f'give one of them a type of its own, such as: type: Literal["my-{name}"] = "my-{name}"'
            )
        FAMILY[name] = cls

    @field_validator("type")
    @classmethod
    def _its_own(cls, value: str) -> str:
        if type_of(cls) not in ("", value):
            raise ValueError(f"the type of {_path(cls)} is {type_of(cls)!r}, not {value!r}")
        return value


def type_of(cls: type[Record]) -> str:
    """The `type` that a class states; empty for one that is only a base."""
    default = cls.model_fields["type"].default
    return "" if default is PydanticUndefined else str(default)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class UnknownRecord(Record):
    """A record of a class that this process has not imported; its fields keep their written values."""

    model_config = ConfigDict(extra="allow")


def resolved(record: Record) -> Record:
    """Turn an `UnknownRecord` into its own class, if this process has imported that class by now.

    Raises:
        pydantic.ValidationError: the record does not fit that class.
    """
    known = FAMILY.get(record.type) if isinstance(record, UnknownRecord) else None
    return record if known is None else known.model_validate_json(record.model_dump_json())


def _parsed(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, dict):
        return value
    found = FAMILY.get(str(value.get("type")), UnknownRecord)
    return found.model_validate_json(json.dumps(value)) if info.mode == "json" else found.model_validate(value)


AnyRecord = Annotated[SerializeAsAny[Record], BeforeValidator(_parsed)]
"""A field that takes any record, and writes it with the fields of its own class."""


def in_json(value: float) -> float | str:
    """A number as JSON can hold it: NaN and the infinities become "NaN", "Infinity" and "-Infinity"."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


Measured = Annotated[float, PlainSerializer(in_json, when_used="json")]
"""A measured number. It may be NaN or infinite: JSON holds that as text, and pydantic reads the text as a number."""
