"""The base of everything that crosses a process."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable, strictly checked value: no unknown fields, no change after creation."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, serialize_by_alias=True, protected_namespaces=()
    )
