"""Strict YAML: JSON's types only; no tags, no merge keys, no duplicate keys. The parser keeps the line of each value.

Scalars follow the core schema of YAML 1.2, so `2e-3` is a number and `no` is text. The parser counts values before it
expands aliases, so a small file cannot become a large value.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from kdq_core.errors import RecipeError
from kdq_core.recipe.yaml_mistakes import mistake

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_CHARACTERS = 1_000_000

NO_CHARACTER = "an escape in double quotes names no character; write the character itself"

Loc = tuple[str | int, ...]

_NULL = re.compile(r"(~|null|Null|NULL)?")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Document:
    """A parsed file: its name as the user gave it, its value, and the line of each key and list item."""

    name: str
    value: Any
    lines: Mapping[Loc, int] = field(default_factory=dict)

    def where(self, loc: Loc = ()) -> str:
        """`file:line` of `loc`, or of the nearest value around it that the file has; else the file alone."""
        for end in range(len(loc), 0, -1):
            if loc[:end] in self.lines:
                return f"{self.name}:{self.lines[loc[:end]]}"
        return self.name


def parse(text: str, name: str) -> Document:
    """Parse one YAML document.

    Args:
        text: the file's text.
        name: the file's name for messages.

    Raises:
        RecipeError: it is not YAML, or uses more of YAML than data; the message starts with `name:line`.
    """
    builder = _Builder(name)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        line, told = mistake(error, text, builder.opened())
        raise RecipeError(f"{name}:{line}: {told}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        sign = text[error.position]
        raise RecipeError(f"{name}:{line}: the character {sign!r} is not allowed in YAML; delete it") from None
    except (ValueError, OverflowError):
        raise RecipeError(f"{name}:{builder.line}: {NO_CHARACTER}") from None
    return Document(name, builder.value, builder.lines)


@dataclass
class _Open:
    """A list or mapping being filled; `size` and `characters` count what it holds, aliases expanded.

    `bracket` is the line and the sign that opens it, if one does.
    """

    value: list[Any] | dict[str, Any]
    loc: Loc
    anchor: str | None
    bracket: tuple[int, str] | None = None
    key: str | None = None
    size: int = 1
    characters: int = 0


class _Builder:
    """Turns parser events into a value, without recursion."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: Any = None
        self.lines: dict[Loc, int] = {}
        self.line = 1
        self.documents = 0
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int, int]] = {}

    def take(self, event: yaml.Event) -> None:
        if event.start_mark is not None:
            self.line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise self.error(
                    "a second document starts here; a file holds one, so write this into a file of its own"
                )
        elif isinstance(event, yaml.AliasEvent):
            self.alias(event.anchor)
        elif isinstance(event, yaml.ScalarEvent):
            self.scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.close()

    def opened(self) -> tuple[int, str] | None:
        """Line and sign of the innermost bracket, if the innermost list or mapping has one."""
        return self.stack[-1].bracket if self.stack else None

    def error(self, message: str) -> RecipeError:
        return RecipeError(f"{self.name}:{self.line}: {message}")

    def scalar(self, event: yaml.ScalarEvent) -> None:
        self.no_tag(event.tag)
        text = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self.error(NO_CHARACTER)
        parent = self.stack[-1] if self.stack else None
        is_key = parent is not None and isinstance(parent.value, dict) and parent.key is None
        if is_key and text == "<<" and event.style is None:
            raise self.error("merge keys ('<<') are not supported; write the values out")
        value = text if event.style else self.plain(text)
        if event.anchor:
            self.anchors[event.anchor] = (value, 1, len(text))
        self.add(value, 1, len(text))

    def plain(self, text: str) -> Any:
        """Resolve an unquoted scalar."""
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text) and len(text) <= 40:
            return int(text)
        if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        if _FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text):
            raise self.error(f"{short(text)} is not a finite number")
        return text

    def alias(self, anchor: str | None) -> None:
        if anchor is None or anchor not in self.anchors:
            raise self.error(f"alias '*{anchor}' refers to nothing before it; put text that begins with '*' in quotes")
        self.add(*self.anchors[anchor])

    def open(self, event: yaml.CollectionStartEvent) -> None:
        self.no_tag(event.tag)
        if len(self.stack) >= MAX_DEPTH:
            raise self.error(f"nested deeper than {MAX_DEPTH} levels")
        if self.stack and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is None:
            raise self.error("a key must be text, not a list or mapping")
        value: list[Any] | dict[str, Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        bracket = (self.line, "{" if isinstance(value, dict) else "[") if event.flow_style else None
        self.stack.append(_Open(value, self.next_loc(), event.anchor, bracket))
        self.lines.setdefault(self.stack[-1].loc, self.line)

    def close(self) -> None:
        done = self.stack.pop()
        if done.anchor:
            self.anchors[done.anchor] = (done.value, done.size, done.characters)
        self.add(done.value, done.size, done.characters)

    def next_loc(self) -> Loc:
        if not self.stack:
            return ()
        parent = self.stack[-1]
        return (*parent.loc, len(parent.value) if isinstance(parent.value, list) else str(parent.key))

    def add(self, value: Any, size: int, characters: int) -> None:
        """Put a finished value where it belongs."""
        if not self.stack:
            self.value = value
            return
        parent = self.stack[-1]
        parent.size += size
        parent.characters += characters
        if parent.size > MAX_NODES or parent.characters > MAX_CHARACTERS:
            raise self.error(f"more than {MAX_NODES} values or {MAX_CHARACTERS} characters, aliases written out")
        if isinstance(parent.value, list):
            self.lines.setdefault(self.next_loc(), self.line)
            parent.value.append(value)
        elif parent.key is None:
            self.new_key(parent, value)
        else:
            parent.value[parent.key] = value
            parent.key = None

    def new_key(self, parent: _Open, key: Any) -> None:
        if not isinstance(key, str):
            raise self.error(f"the key {key!r} is not text; put it in quotes")
        if key in parent.value:
            first = self.lines[(*parent.loc, key)]
            raise self.error(
                f"the key {short(key)} stands here a second time; the first is in line {first}; delete one"
            )
        parent.key = key
        self.lines[(*parent.loc, key)] = self.line

    def no_tag(self, tag: str | None) -> None:
        if tag is not None:
            raise self.error(f"the tag {tag!r} is not allowed; a file holds plain values")


def short(value: object, limit: int = 60) -> str:
    """`repr`, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
