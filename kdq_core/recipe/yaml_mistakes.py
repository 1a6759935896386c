"""Says in KDQ's words what is wrong with a file that is no YAML: the line, the mistake, and how to write it.

The parser's own texts name tokens of its grammar, so KDQ recognises a mistake by them and looks at the line itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import yaml

Told = tuple[int, str]
UNREADABLE = "KDQ cannot read this line as YAML; it expects 'key: value' or '- item'"
SAME_COLUMN = "keys of one section begin in the same column"
_COLON = re.compile(r"([\w.-]+):(\S.*)")
_WORDS = re.compile(r"([\w.-]+)\s*=?\s+(\S.*)")
_TOKEN = re.compile(r"[^\s,\]}:]*")
CLOSING = {"[": "]", "{": "}"}


@dataclass(frozen=True)
class Mistake:
    """What the parser found, and where.

    Attributes:
        lines: the lines of the file.
        problem: the parser's text.
        found: the token in it that the parser did not expect.
        line: index of the line of the problem.
        column: where in that line.
        start: line and column of what the parser was reading; those of the problem if it names none.
    """

    lines: list[str]
    problem: str
    found: str
    line: int
    column: int
    start: tuple[int, int]

    @property
    def text(self) -> str:
        """The line of the problem; empty behind the end of the file."""
        return self.at(self.line)

    def at(self, line: int) -> str:
        """A line without a comment at its end."""
        return re.sub(r"(^|\s)#.*", "", self.lines[line]).rstrip() if line < len(self.lines) else ""


def mistake(error: yaml.MarkedYAMLError, text: str, opened: tuple[int, str] | None) -> Told:
    """Explain an error of the parser.

    Args:
        error: what the parser raised.
        text: the file's text.
        opened: number of the line, and sign, of the innermost bracket that is open.

    Returns:
        The number of the line, and the mistake with how to write it.
    """
    mark = error.problem_mark or error.context_mark
    context = error.context_mark or mark
    problem = f"{error.context or ''}; {error.problem or ''}"
    found = re.search(r"(?:found|got) '(.+)'$", problem)
    seen = Mistake(
        lines=text.splitlines(),
        problem=problem,
        found=found[1] if found else "",
        line=mark.line if mark else 0,
        column=mark.column if mark else 0,
        start=(context.line, context.column) if context else (0, 0),
    )
    if opened and "expected the node content, but found '<stream end>'" in problem:
        return opened[0], _not_closed(opened[1])
    for words, explain in _EXPLAINED.items():
        if re.search(words, problem):
            return explain(seen)
    return seen.line + 1, UNREADABLE


def _not_closed(sign: str, more: str = "") -> str:
    return f"the bracket {sign!r} that opens here is not closed{more}; write {CLOSING[sign]!r} after what it holds"


def _sign(seen: Mistake) -> Told:
    """A sign with which no value begins."""
    sign = seen.text[seen.column : seen.column + 1] or seen.lines[seen.line][seen.column : seen.column + 1]
    if sign != "\t":
        return seen.line + 1, f"no value begins with {sign!r}; put the value in quotes"
    if seen.text[: seen.column].strip():
        return seen.line + 1, "a tab stands in this line; write spaces"
    return seen.line + 1, "a tab indents this line; write spaces, two for each level"


def _no_colon(seen: Mistake) -> Told:
    line, column = seen.start
    text = seen.at(line)[column:]
    return line + 1, _tight_colon(text) or _spaced(text)


def _spaced(text: str) -> str:
    words = _WORDS.fullmatch(text)
    write = f"{words[1]}: {words[2]}" if words else f"{text}: VALUE"
    return f"no colon stands in {text!r}; write '{write}'"


def _tight_colon(text: str) -> str:
    key = _COLON.fullmatch(text.strip())
    return f"no space stands after the colon of {text.strip()!r}; write '{key[1]}: {key[2]}'" if key else ""


def _second_colon(seen: Mistake) -> Told:
    """A colon in what the parser reads as one text."""
    before = seen.text[: seen.column]
    if re.search(r":\s", before):
        key, _, value = seen.text.strip().removeprefix("- ").partition(": ")
        write = f"{key}: {value!r}"
        return seen.line + 1, f"a second colon stands in this line; put the value in quotes if it is text: {write}"
    above = next((line for line in range(seen.line - 1, -1, -1) if seen.at(line)), 0)
    tight = _tight_colon(seen.at(above))
    if tight:
        return above + 1, tight
    deep = len(before) - len(before.lstrip())
    return seen.line + 1, f"this line is indented by {deep}, but the line above ends with a value; {SAME_COLUMN}"


def _unexpected(seen: Mistake) -> Told:
    """A line that continues a section, and is not of its kind."""
    indent = len(seen.text) - len(seen.text.lstrip())
    said = {
        "-": "a list item stands among keys; indent it below its key, or leave '- ' out",
        "?": "a key stands among the items of a list; indent it into the item above, or begin it further left",
        ":": "no key stands before this colon; write 'key: value'",
        "<scalar>": "text follows a closing quote; put the whole value in one pair of quotes",
        "<block mapping start>": f"this line is indented by {indent}, and no section above is; {SAME_COLUMN}",
        "<block sequence start>": f"this line is indented by {indent}, and no list above is; items of one list begin "
        "in the same column",
        "<stream end>": "'%' begins a directive; leave the line out, or put the value in quotes",
    }
    line = 0 if seen.found == "<stream end>" else seen.line
    said |= {sign: f"{sign!r} stands where none is open; leave it out, or use quotes" for sign in CLOSING.values()}
    return line + 1, said.get(seen.found, UNREADABLE)


def _bracket(seen: Mistake) -> Told:
    line, column = seen.start
    sign = "[" if "',' or ']'" in seen.problem else "{"
    if seen.found == "<stream end>":
        return line + 1, _not_closed(sign)
    if seen.found in CLOSING.values():
        return seen.line + 1, f"{seen.found!r} closes what {sign!r} opens; write {CLOSING[sign]!r}"
    if seen.line > line:
        return line + 1, _not_closed(sign, f" before line {seen.line + 1}, or a comma is missing there")
    inside = seen.text[column : seen.column]
    return line + 1, f"a comma is missing in {inside!r}; write one between two values"


def _quote(seen: Mistake) -> Told:
    line, column = seen.start
    return (
        line + 1,
        f"the quote ({seen.lines[line][column]}) that opens here is not closed; write it after the text too",
    )


def _no_value(seen: Mistake) -> Told:
    if len(seen.found) != 1:
        return seen.line + 1, UNREADABLE
    return seen.line + 1, f"no value begins with {seen.found!r}; leave it out, or put the value in quotes"


def _named(what: str) -> Callable[[Mistake], Told]:
    """A sign that begins an alias, an anchor or a tag."""

    def explain(seen: Mistake) -> Told:
        line, column = seen.start
        found = _TOKEN.match(seen.at(line), column)
        token = found[0] if found else ""
        return line + 1, f"{token[:1]!r} begins {what} in YAML; put text that begins with it in quotes, as in {token!r}"

    return explain


def _said(text: str) -> Callable[[Mistake], Told]:
    return lambda seen: (seen.line + 1, text)


_EXPLAINED: dict[str, Callable[[Mistake], Told]] = {
    "that cannot start any token": _sign,
    "could not find expected ':'": _no_colon,
    "mapping values are not allowed": _second_colon,
    "expected <block end>": _unexpected,
    "expected '<document start>'": _unexpected,
    "expected ',' or": _bracket,
    "scanning a quoted scalar": _quote,
    "scanning an alias": _named("an alias"),
    "scanning an anchor": _named("an anchor"),
    "a tag|undefined tag": _named("a tag"),
    "double-quoted scalar": _said(
        "a backslash in double quotes begins an escape, and YAML knows none of this form; write two backslashes, or "
        "use single quotes"
    ),
    "scanning a block scalar": _said(
        "text that '|' or '>' announces begins in the next line; write it there, indented"
    ),
    "sequence entries are not allowed": _said(
        "a list begins in the line of its key; write its items below, each after '- ', or write [a, b]"
    ),
    "expected the node content": _no_value,
    "mapping keys are not allowed": _said("no value begins with '?'; put the value in quotes"),
    "directive|incompatible YAML": _said("'%' begins a directive; leave the line out, or put the value in quotes"),
}
