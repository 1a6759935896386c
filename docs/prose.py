"""Docstrings and method cards as Markdown, for the generators of reference pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from textwrap import dedent

SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Yields")
_CODE = re.compile(r"(`[^`]*`)")
_ITEM = re.compile(r"(\*{0,2}[\w.]+): (.*)", re.DOTALL)
_CARD = re.compile(r"([A-Z][\w ]*?)(?:: ?|$)(.*)")


def escaped(text: str) -> str:
    """Text in which `*`, `_`, `<` and `[` mean themselves; code between backticks stays as it is."""
    parts = _CODE.split(text)
    marked = [re.sub(r"([\\*_\[])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "".join(plain + code for plain, code in zip(marked, [*parts[1::2], ""], strict=True))


def markdown(docstring: str) -> str:
    """A docstring with Google's headings, cleaned of its indentation, as paragraphs and lists."""
    return "\n\n".join(_blocks(docstring.split("\n")))


def card(docstring: str) -> str:
    """A method card as a list: What, Formula, Source, Defaults, Costs, Limits. Its first line is left out."""
    points: list[list[str]] = []
    for line in docstring.split("\n")[1:]:
        if line and not line.startswith(" "):
            head, rest = _headed(line)
            points.append([f"- **{head}**:", *rest])
        elif line.strip() and points:
            points[-1].append(escaped(line.strip()))
    return "\n".join(" ".join(point) for point in points)


def _headed(line: str) -> tuple[str, list[str]]:
    found = _CARD.fullmatch(line)
    if found is None:
        raise ValueError(f"a line of a method card starts with no heading: {line!r}")
    return found[1], [escaped(found[2])] if found[2] else []


def _blocks(lines: list[str]) -> Iterator[str]:
    """Paragraphs, code and sections, in order."""
    while lines:
        head, lines = lines[0], lines[1:]
        if head.startswith("```"):
            end = lines.index("```")
            yield "\n".join([head, *lines[: end + 1]])
            lines = lines[end + 1 :]
        elif head.removesuffix(":") in SECTIONS and head.endswith(":"):
            inside = _while(lines, lambda line: not line or line.startswith(" "))
            yield f"{head.removesuffix(':')}:\n\n{_items(dedent(chr(10).join(inside)).strip())}"
            lines = lines[len(inside) :]
        elif head.strip():
            rest = _while(lines, lambda line: bool(line.strip()) and not line.startswith(("```", "- ")))
            yield escaped(" ".join([head, *(line.strip() for line in rest)]))
            lines = lines[len(rest) :]


def _while(lines: list[str], holds: Callable[[str], bool]) -> list[str]:
    count = next((number for number, line in enumerate(lines) if not holds(line)), len(lines))
    return lines[:count]


def _items(text: str) -> str:
    """The lines of a section as a list; a section without names is one point."""
    points = re.split(r"\n(?! )", text)
    named = [_ITEM.fullmatch(" ".join(point.split())) for point in points]
    if all(named):
        return "\n".join(f"- `{found[1]}`: {escaped(found[2])}" for found in named if found)
    return f"- {escaped(' '.join(text.split()))}"
