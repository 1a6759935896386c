"""Tables that fit the terminal: a row wraps between words, and a table that is too wide becomes a list."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Pairs = Sequence[tuple[str, str]]
FRAME = 3
"""Characters that each column takes beside its text: a line and two spaces; the table takes one more."""
LONGEST_NAME = 24
"""A longer name of a list has a line of its own."""
FULL_LINE = 100
"""A docstring's line was wrapped, if the next word would have made it longer than this."""


def print_table(console: Console, rows: Sequence[dict[str, object]], title: str) -> None:
    """Print a table; if it cannot fit the console without breaking words, a list with one block for each row.

    Args:
        console: where to print.
        rows: one dict a row; the columns are the keys in order of first appearance, without those of empty cells only.
        title: heading of the table.
    """
    found = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in found if any(_cell(row.get(name)) for row in rows)]
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = _widths([names, *cells], console.width)
    if widths is None:
        print_lists(console, _lists(names, cells, title))
        return
    from rich.table import Table
    from rich.text import Text

    _print(console, wrap(title, console.width), "bold")
    table = Table()
    for name, width in zip(names, widths):
        numbers = all(isinstance(row[name], int | float) for row in rows if _cell(row.get(name)))
        table.add_column(Text(name), justify="right" if numbers else "left", width=width)
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


def _lists(names: Sequence[str], cells: Sequence[Sequence[str]], title: str) -> list[tuple[str, Pairs]]:
    """The rows of a table as lists: one for each row below its first cell, or one in all if there are two columns."""
    if len(names) == 2:
        return [(title, [(name, text) for name, text in cells])]
    blocks = [(row[0], [(name, cell) for name, cell in zip(names[1:], row[1:]) if cell]) for row in cells]
    return [(title, []), *blocks]


def print_lists(console: Console, groups: Iterable[tuple[str, Pairs]]) -> None:
    """Print lists of names, each with its text beside it; the texts of all lists stand under each other.

    Args:
        console: where to print.
        groups: heading of each list, with its pairs of name and text.
    """
    groups = list(groups)
    names = [name for _, pairs in groups for name, _ in pairs]
    hang = 4 + max((len(name) for name in names if len(name) <= LONGEST_NAME), default=0)
    for heading, pairs in groups:
        _print(console, wrap(heading, console.width), "bold")
        for name, text in pairs:
            _print(console, _entry(name, text, hang, console.width))


def _print(console: Console, lines: Iterable[str], style: str = "") -> None:
    """Print lines as they are; rich would read `[...]` as its markup, and `:a:` as a picture."""
    from rich.text import Text

    for line in lines:
        console.print(Text(line, style), soft_wrap=True)


def print_docstring(console: Console, text: str) -> None:
    """Print a docstring, its paragraphs wrapped anew at the console's width with their own indentation."""
    paragraphs: list[list[str]] = []
    before = ""
    for line in text.splitlines():
        goes_on = line.startswith(" ") and line.strip() and before.strip()
        if goes_on and len(f"{before} {line.split()[0]}") > FULL_LINE:
            paragraphs[-1].append(line)
        else:
            paragraphs.append([line])
        before = line
    for lines in paragraphs:
        indents = [line[: len(line) - len(line.lstrip())] for line in lines]
        words = " ".join(line.strip() for line in lines)
        _print(console, wrap(words, console.width, indents[0], indents[-1]) or [""])


def wrap(text: str, width: int, first: str = "", indent: str = "") -> list[str]:
    """The lines of a text, broken between words only; `first` and `indent` begin the first and the other lines."""
    wrapper = textwrap.TextWrapper(width, first, indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text)


def _entry(name: str, text: str, hang: int, width: int) -> list[str]:
    """The lines of one name and its text, which begins at column `hang`."""
    lines = wrap(text, max(20, width - hang))
    head = f"  {name}".ljust(hang)
    if len(head) > hang:
        return [head, *(" " * hang + line for line in lines)]
    return [(start + line).rstrip() for start, line in zip([head, *[" " * hang] * len(lines)], lines or [""])]


def _widths(lines: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """The width of each column in a table of `width`; `None` if the longest words do not fit."""
    from rich.cells import cell_len

    columns = list(zip(*lines))
    least = [max(cell_len(word) for text in column for word in text.split() or [""]) for column in columns]
    natural = [max(map(cell_len, column)) for column in columns]
    spare = width - 1 - FRAME * len(columns) - sum(least)
    if spare < 0:
        return None
    widths = list(least)
    for at in sorted(range(len(columns)), key=lambda at: natural[at] - least[at]):
        widths[at] += min(spare, natural[at] - least[at])
        spare -= widths[at] - least[at]
    return widths


def _cell(value: object) -> str:
    if value is None or value != value:  # NaN: a measurement that there is not
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
