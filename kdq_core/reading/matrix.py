"""The branches of a matrix: the raw document with the values of one combination put in, and its name.

KDQ expands the raw document, not the recipe, because a recipe no longer knows which fields were written.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from kdq_core.errors import RecipeError, did_you_mean, listing
from kdq_core.reading.hints import DEFAULTS
from kdq_core.recipe.strict_yaml import Document, Loc, short
from kdq_core.recipe.study import FIELDS, MOST, UNASKED, Axes, LimitsSpec, MatrixSpec

OWN = "options"
"""Field beside `use`: it belongs to the plug-in that the file names there."""
LONGEST = 100
"""Most letters in the name of a branch, which is a part of the name of a folder."""


def combinations(matrix: MatrixSpec, limits: LimitsSpec | None, document: Document) -> list[Axes]:
    """The axes of each branch: the product without what is excluded, then what is included.

    Args:
        matrix: the section.
        limits: the section `limits`, if the file has one.
        document: the file, for lines in messages.

    Raises:
        RecipeError: there are too many branches or none, or an exclusion names an axis or a value that does not exist.
    """
    number = math.prod(map(len, matrix.over.values())) if matrix.over else 0
    where = document.where(("matrix", "over"))
    _check_number(number + len(matrix.include), limits, where)
    for index, entry in enumerate(matrix.exclude):
        _check_excluded(entry, matrix, document.where(("matrix", "exclude", index)))
    product = (dict(zip(matrix.over, values, strict=True)) for values in itertools.product(*matrix.over.values()))
    kept = [axes for axes in product if not any(_has(axes, entry) for entry in matrix.exclude)] if matrix.over else []
    found = [*kept, *map(dict, matrix.include)]
    if not found:
        raise RecipeError(f"{where}: 'exclude' leaves no branch of {number}; exclude less")
    seen: set[str] = set()
    for axes in found:
        one = written(dict(sorted(axes.items())))
        if one in seen:
            raise RecipeError(f"{where}: two branches are {written(axes)}; name each combination once")
        seen.add(one)
    return found


def _check_number(number: int, limits: LimitsSpec | None, where: str) -> None:
    if number > MOST:
        raise RecipeError(f"{where}: the matrix has {number:,} branches, and KDQ allows {MOST:,}; leave out values")
    if number > UNASKED and limits is None:
        raise RecipeError(
            f"{where}: the matrix has {number:,} branches, and KDQ allows {UNASKED} without limits; write limits: "
            f"{{trials: {number}}} or fewer, or leave out values"
        )


def _check_excluded(entry: Axes, matrix: MatrixSpec, where: str) -> None:
    for axis, value in entry.items():
        if axis not in matrix.over:
            near = did_you_mean(axis, matrix.over) or "."
            raise RecipeError(f"{where}: 'exclude' names the axis {axis!r}{near} 'over' has: {listing(matrix.over)}")
        if value not in matrix.over[axis]:
            has = ", ".join(map(short, matrix.over[axis]))
            raise RecipeError(f"{where}: 'exclude' has {short(value)} for {axis!r}, whose values are: {has}")


def _has(axes: Axes, part: Axes) -> bool:
    return all(axes[name] == value for name, value in part.items())


def branch_document(document: Document, axes: Axes, section: str = "matrix") -> Document:
    """The document of one branch: without the sections of the study, with the values of its axes.

    Messages about a value of an axis show the line of that axis in the section.

    Raises:
        RecipeError: an axis goes into a value that is no mapping, or is a section of the study.
    """
    value = {name: copy.deepcopy(part) for name, part in document.value.items() if name not in FIELDS}
    lines = dict(document.lines)
    for axis in sorted(axes, key=_order):
        path: Loc = tuple(int(part) if part.isdecimal() else part for part in axis.split("."))
        at = document.where((section, "over" if section == "matrix" else "space", axis))
        if path[0] in FIELDS:
            raise RecipeError(f"{at}: the axis {axis!r} is about the branches; name a field that each branch has")
        _put(value, path, copy.deepcopy(axes[axis]), axis, at)
        if ":" in at:
            line = int(at.rpartition(":")[2])
            lines |= {path[:end]: line for end in range(1, len(path)) if path[:end] not in lines} | {path: line}
    return Document(document.name, value, lines)


def _order(axis: str) -> tuple[int, bool]:
    """Sections before their fields, and `use` before the options beside it."""
    return axis.count("."), axis.rpartition(".")[2] != "use"


def _put(value: Any, path: Loc, given: Any, axis: str, where: str) -> None:
    inside = value
    for index, part in enumerate(path[:-1]):
        found = _inner(inside, part)
        if isinstance(found, str) and path[index + 1] in ("use", OWN):
            found = {"use": found}
        if found is None and isinstance(inside, dict):
            found = {}
        if not isinstance(found, dict | list):
            raise RecipeError(
                f"{where}: the axis {axis!r} goes into {'.'.join(map(str, path[: index + 1]))!r}, which is "
                f"{short(found)} and has no fields; name another field, or the whole section"
            )
        inside[part] = found
        inside = found
    last = path[-1]
    if isinstance(inside, list) and not (isinstance(last, int) and last < len(inside)):
        raise RecipeError(f"{where}: the axis {axis!r} names item {last!r} of a list of {len(inside)}; count from 0")
    if last == "use" and isinstance(inside, dict) and inside.get("use", DEFAULTS.get(path[:-1])) != given:
        inside.pop(OWN, None)  # they are those of the plug-in that the file names
    inside[last] = given


def _inner(inside: Any, part: str | int) -> Any:
    if isinstance(inside, dict):
        return inside.get(str(part))
    return inside[part] if isinstance(part, int) and part < len(inside) else None


def names_of(branches: Sequence[Axes]) -> list[str]:
    """A name for each branch, such as `use=lsq,weights=4`: short, and no two alike."""
    axes = dict.fromkeys(axis for branch in branches for axis in branch)
    titles = dict(_titles(list(axes)))
    names = [",".join(f"{titles[axis]}={_value(value)}" for axis, value in branch.items()) for branch in branches]
    return list(unique(name[:LONGEST].rstrip(",=") or "base" for name in names))


def unique(names: Iterable[str]) -> Iterator[str]:
    """The names, with `+2`, `+3` at those that were there before."""
    seen: set[str] = set()
    for name in names:
        numbered = (f"{name}+{number}" for number in itertools.count(2))
        one = next(each for each in itertools.chain([name], numbered) if each not in seen)
        seen.add(one)
        yield one


def _titles(axes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The last parts of each axis that no other axis ends with."""
    for axis in axes:
        parts = axis.split(".")
        tails = (".".join(parts[-size:]) for size in range(1, len(parts) + 1))
        yield (
            axis,
            next(
                tail for tail in tails if not any(f".{other}".endswith(f".{tail}") for other in axes if other != axis)
            ),
        )


def _value(value: Any) -> str:
    """A value in a name, in letters that a file name and a shell may hold."""
    if isinstance(value, dict):
        value = value.get("name") or value.get("use") or value
    if isinstance(value, list):
        value = "+".join(map(_value, value))
    if isinstance(value, int | float):
        return json.dumps(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.+]+", "-", text).strip("-")[:40] or "none"


def written(axes: Axes) -> str:
    """The axes as YAML in one line."""
    return "{" + ", ".join(f"{axis}: {json.dumps(value)}" for axis, value in axes.items()) + "}"
