"""Copies of sections and workloads that show a stage what its `reads()` names, and raise on anything else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn

from kdq_core.errors import PluginError
from kdq_core.frozen import Frozen
from kdq_core.plugins.contract import Section
from kdq_core.plugins.kinds import Workload


def guarded(spec: Frozen, sections: Sequence[Section], title: str, path: str = "") -> Frozen:
    """Copy a section so that a stage can read only the fields that `sections` name.

    The copy has the same class, so functions accept it. Its properties see the shown fields only.

    Args:
        spec: the whole section, or a part of it.
        sections: the declarations in the stage's `reads()` for this section.
        title: title of the stage, for the error.
        path: dotted path of `spec` within the section, with a final dot; empty for the section itself.
    """
    shown: dict[str, Any] = {}
    for name in type(spec).model_fields:
        how = shown_of(f"{path}{name}", sections)
        value = getattr(spec, name)
        if how == "whole":
            shown[name] = value
        elif how == "part" and isinstance(value, Frozen):
            shown[name] = guarded(value, sections, title, f"{path}{name}.")
    if len(shown) == len(type(spec).model_fields) and all(shown[name] is getattr(spec, name) for name in shown):
        return spec
    made = _guard(type(spec), title, f"{sections[0].name}.{path}").model_construct(**shown)
    for name in type(spec).model_fields.keys() - shown.keys():
        made.__dict__.pop(name, None)
    return made


def without_data(workload: Workload, title: str) -> Workload:
    """Copy a workload for a stage that reads no data: it makes models and losses, and raises if asked for batches."""
    return _without_data(type(workload), title).model_construct(**dict(workload))


def reads_data(title: str) -> PluginError:
    """The error for a stage that reads data although its `reads()` denies it."""
    return PluginError(
        f"stage {title!r} reads the workload's data, but its reads() says data=False; drop that, so that the stage's "
        "key holds the data's fingerprint"
    )


def shown_of(path: str, sections: Sequence[Section]) -> str:
    """How much of a field the sections show together: `whole`, `part` or `none`."""
    found = {_shown_by(section, path) for section in sections}
    return next((how for how in ("whole", "part") if how in found), "none")


def _shown_by(section: Section, path: str) -> str:
    def covers(one: str) -> bool:
        return path == one or path.startswith(f"{one}.")

    if any(map(covers, section.without)):
        return "none"
    inside = [*(section.only or ()), *section.without]
    if section.only is None or any(map(covers, section.only)):
        return "part" if any(one.startswith(f"{path}.") for one in section.without) else "whole"
    return "part" if any(one.startswith(f"{path}.") for one in inside) else "none"


@cache
def _guard(base: type[Frozen], title: str, prefix: str) -> type[Frozen]:
    """Make a subclass that raises when a stage reads a hidden field."""

    def missing(_self: Frozen, name: str) -> Any:
        if name in base.model_fields:
            raise PluginError(
                f"stage {title!r} reads '{prefix}{name}', which its reads() does not name; name it there, so that the "
                "stage's key holds it"
            )
        raise AttributeError(f"{base.__name__!r} object has no attribute {name!r}")

    return type(base.__name__, (base,), {"__getattr__": missing, "__module__": base.__module__})


@cache
def _without_data(base: type[Workload], title: str) -> type[Workload]:
    def refuse(*_args: Any, **_options: Any) -> NoReturn:
        raise reads_data(title)

    own = dict.fromkeys(("batches", "samples", "fingerprint"), refuse)
    return type(base.__name__, (base,), {**own, "__module__": base.__module__})
