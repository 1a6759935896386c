"""The page `cli.md`, from typer's own tree of commands."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer
from make_reference import table
from prose import escaped

from kdq_flows.cli import app

HEAD = """\
# Command line

`docs/make_pages.py` writes this page from the help texts of the commands. Do not edit it. `kdq COMMAND --help` prints
the same on a terminal.

The options of `kdq` itself stand before the command, as in `kdq --debug run recipes/digits.yaml`.
"""


def page() -> str:
    """The page."""
    root = typer.main.get_command(app)
    parts = [HEAD, *_options(root, "kdq"), escaped(root.epilog or "")]
    for path, command in _commands(root, "kdq"):
        pieces = command.collect_usage_pieces(command.context_class(command, info_name=path))
        usage = " ".join([path, *(piece.strip("{}") for piece in pieces)])
        text = escaped(" ".join(inspect.cleandoc(command.help or "").split()))
        parts += [f"## `{path}`", text, f"```\n{usage}\n```", *_options(command, path)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with all words before its arguments."""
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _options(command: Any, path: str) -> list[str]:
    """One table of arguments and options; none if the command takes none."""
    context = command.context_class(command, info_name=path)
    records = [record for one in command.params if (record := one.get_help_record(context))]
    rows = [(f"`{name}`", *map(escaped, _split(text))) for name, text in records]
    return [table(("argument or option", "meaning", "default, bounds"), rows)] if rows else []


def _split(text: str) -> tuple[str, str]:
    """A help text, and what typer writes in brackets behind it: `required`, a default, bounds."""
    meaning, _, rest = text.partition("  [")
    return meaning, rest.removesuffix("]").replace("<=", " ≤ ").replace("x>=", "x ≥ ")
