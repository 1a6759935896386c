"""Pydantic's errors in KDQ's words: what was asked, what is allowed, and the line it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kdq_core.errors import WrongPartsError, did_you_mean, listing
from kdq_core.recipe.strict_yaml import Loc, short
from kdq_core.recipe.student import USER_CODE

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

Schema = dict[str, Any]
Where = Callable[[Loc], str]
Hint = Callable[["ErrorDetails"], tuple[Loc, str] | None]
"""Gives a better text for an error and the location it is about, or `None` to keep the usual text."""

FORM = "module:function or file.py:function"
"""What `USER_CODE` matches, in words."""
_SHOWN = 10
_TYPES = {
    "integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false",
    "array": "a list", "object": "a mapping", "null": "null",
}  # fmt: skip
_CHOICE = "a choice"
_PLUGIN = "a plug-in's name, or a mapping with its name as 'use'"


def type_name(schema: Schema, root: Schema) -> str:
    """The type of a field of a JSON Schema in words, such as `a whole number or null`."""
    schema = resolve(schema, root)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_name(part, root) for part in schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return _CHOICE
    if "use" in schema.get("required", ()):
        return _PLUGIN
    return _TYPES.get(schema.get("type", ""), "any value")


def bounds(schema: Schema, root: Schema) -> str:
    """The bounds of a field in words: `1 to 100`, `above 0`, `'a' or 'b'`; empty for no bound."""
    schema = resolve(schema, root)
    if "anyOf" in schema:
        return "; ".join(filter(None, (bounds(part, root) for part in schema["anyOf"])))
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if choices:
        return " or ".join(sorted(map(repr, choices)))
    if "pattern" in schema:
        return FORM if schema["pattern"] == USER_CODE else f"matching {schema['pattern']}"
    if "minItems" in schema:
        return f"at least {schema['minItems']} long"
    return _range(schema)


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{low} to {high}"
    words = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    return " and ".join(f"{word} {schema[key]}" for key, word in words.items() if key in schema)


def allowed(schema: Schema, root: Schema) -> str:
    """Type and bounds in one phrase; choices stand for their type."""
    words, limits = type_name(schema, root), bounds(schema, root)
    types = words.split(" or ")
    if limits and _CHOICE in types:
        return " or ".join([limits, *(name for name in types if name != _CHOICE)])
    return f"{words}, {limits}" if limits else words


def resolve(schema: Schema, root: Schema) -> Schema:
    """Follow a `$ref` into `root`'s definitions."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema


def _alternatives(schema: Schema, root: Schema) -> list[Schema]:
    """The schemas that a value may follow: those of `anyOf`, or the schema itself."""
    return [resolve(option, root) for option in schema.get("anyOf", [schema])]


def _step(schema: Schema, part: str | int, root: Schema) -> Schema | None:
    """The schema of the item or property `part`, or `None` if there is none."""
    for known in _alternatives(schema, root):
        named = known.get("properties", {}).get(part, known.get("additionalProperties"))
        found = known.get("items") if isinstance(part, int) else named
        if isinstance(found, dict):
            return found
    return None


def _locate(root: Schema, loc: Loc) -> tuple[Loc, Schema]:
    """The longest start of `loc` that is a path of fields, and the schema there."""
    schema, path = resolve(root, root), []
    for part in loc:
        found = _step(schema, part, root)
        if found is None:
            break
        schema = resolve(found, root)
        path.append(part)
    return tuple(path), schema


def dotted(loc: Loc) -> str:
    """`('gates', 0, 'metric')` as `gates[0].metric`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def problems(
    error: ValidationError,
    model: type[BaseModel],
    *,
    where: Where,
    key: str = "key",
    of: str = "",
    hint: Hint = lambda _detail: None,
) -> list[str]:
    """One short line for each error, in the order of the file.

    Args:
        error: what pydantic found.
        model: the model that was validated.
        where: gives `file:line` for a location in the input; an empty string if the input has no file.
        key: the word for a field in messages, such as `option`.
        of: the owner of the fields, such as `of distiller 'logit-kd'`.
        hint: gives a better text for some errors.
    """
    lines: dict[Loc, str] = {}
    for loc, at, text in _found(error, model, (), key=key, of=f" {of}" if of else "", hint=hint):
        place = where(at)
        lines.setdefault(loc, f"{place}: {text}" if place else text)
    return sorted(lines.values(), key=_by_line)


def _found(
    error: ValidationError, model: type[BaseModel], within: Loc, *, key: str, of: str, hint: Hint
) -> Iterator[tuple[Loc, Loc, str]]:
    """For each error: the location it is about (reported once each), the location in the file, and the text."""
    root, found = model.model_json_schema(), error.errors()
    for detail in found:
        at, wrong = detail["loc"], detail.get("ctx", {}).get("error")
        if detail["type"] == "too_short" and any(len(o["loc"]) > len(at) and o["loc"][: len(at)] == at for o in found):
            continue  # its items have errors of their own: pydantic counts the valid ones only
        if isinstance(wrong, WrongPartsError):
            for name, part in wrong.parts.items():
                yield from _found(part, wrong.model, (*within, *at, name), key=key, of=of, hint=hint)
        elif hinted := hint(detail):
            yield hinted[0], *hinted
        else:
            loc, schema = _locate(root, at)
            text = _say(detail, (*within, *loc), schema, root, key=key, of=of)
            yield (*within, *(at if detail["type"] == "extra_forbidden" else loc)), (*within, *at), text


def summary(lines: list[str], subject: str) -> str:
    """Join the lines to one message: a single one alone, several under a heading, ten at most."""
    if len(lines) == 1:
        return lines[0]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([f"{subject} has {len(lines)} problems:", *lines[:_SHOWN], *more])


def _by_line(text: str) -> tuple[int, str]:
    head = text.split(": ", 1)[0].rsplit(":", 1)[-1]
    return (int(head) if head.isdecimal() else 0, text)


def _say(detail: ErrorDetails, loc: Loc, schema: Schema, root: Schema, *, key: str, of: str) -> str:
    kind, name = detail["type"], dotted(loc)
    if kind == "extra_forbidden":
        asked = str(detail["loc"][-1])
        known = [field for option in _alternatives(schema, root) for field in option.get("properties", ())]
        inside = f" in {name!r}" if name else ""
        near = did_you_mean(asked, known) or ";"
        return f"unknown {key} {short(asked)}{inside}{of}{near} allowed: {listing(known)}"
    if kind == "missing":
        return f"{key} {name!r}{of} is missing; it must be {allowed(schema, root)}"
    if kind == "value_error":
        reason = str(detail["ctx"]["error"])
        return f"{key} {name!r}{of}: {reason}" if name else reason
    if not name:
        return f"{short(detail['input'])} is not a mapping of {key}s{of}"
    near = did_you_mean(str(detail["input"]), _choices(schema, root)) or ";"
    return f"{key} {name!r}{of} is {short(detail['input'])}{near} allowed: {allowed(schema, root)}"


def _choices(schema: Schema, root: Schema) -> list[str]:
    return [str(choice) for option in _alternatives(schema, root) for choice in option.get("enum", ())]
