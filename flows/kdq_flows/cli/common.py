"""Helpers of all commands: the site, a checked recipe, tables, and errors as one paragraph.

The module imports neither pydantic nor rich at its top, so that `kdq --help` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdq_flows.cli.tables import print_table, wrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

    from kdq_core.reading.studies import Study
    from kdq_core.recipe.spec import Recipe, Site

RecipeFile = Annotated[Path, typer.Argument(metavar="FILE", help="The recipe, a YAML file.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

debug = False
"""Set by `kdq --debug`: errors show their traceback."""

PIPE_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""


def console(*, stderr: bool = False) -> Console:
    """A rich console for stdout or stderr; a file or a pipe gets `PIPE_WIDTH` columns and no colour."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def show(rows: list[dict[str, object]], *, title: str, as_json: bool) -> None:
    """Print rows as a table, or as one JSON array, on stdout.

    Args:
        rows: one dict a row; the columns are the keys in order of first appearance.
        title: heading of the table; the JSON has none.
        as_json: print JSON; values of other types become text.
    """
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False, default=str))
        return
    print_table(console(), rows, title)


def site(**overrides: Any) -> Site:
    """The site that the environment describes; values of the command line take precedence.

    Args:
        **overrides: fields of `Site`; `None` means "not given".

    Raises:
        RecipeError: a field does not allow its value; the message names the environment variable.
    """
    from kdq_core.recipe.spec import Site

    return Site.from_environment(**overrides)


def load_recipe(path: Path, *, files: bool = False) -> Recipe:
    """Read a recipe and check it with every plug-in that it names; with `files`, check too that named files exist.

    Raises:
        RecipeError: the file or a value in it is wrong; the message names file and line.
        PluginError: the recipe names a plug-in that is missing or broken.
    """
    from kdq_core.reading.checks import load_recipe

    return load_recipe(path, files=files)


def load_any(path: Path, *, files: bool = False) -> Recipe | Study:
    """The same for a recipe with or without branches; it checks every branch.

    Raises:
        KdqError: see `load_recipe`.
    """
    from kdq_core.reading.studies import load

    return load(path, files=files)


def print_error(message: str) -> None:
    """Print `error: <message>` on stderr as `say` prints."""
    say(f"error: {message}", err=True)


def say(text: str, *, err: bool = False) -> None:
    """Print text on stdout, or stderr; KDQ wraps it between words on a terminal, and leaves its lines elsewhere."""
    if (sys.stderr if err else sys.stdout).isatty():
        width = max(40, min(shutil.get_terminal_size().columns, 100))
        text = "\n".join("\n".join(wrap(line, width)) for line in text.splitlines())
    typer.echo(text, err=err)


def notes(lines: Iterable[str]) -> None:
    """Print each line on stderr as `note: <line>`."""
    for line in lines:
        say(f"note: {line}", err=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell the user of a file that cannot be written.

    Raises:
        RecipeError: it names the file and the reason.
    """
    from kdq_core.errors import RecipeError

    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)  # pandas gives a message and no error code
        raise RecipeError(f"'{path}' cannot be written: {why[:1].lower()}{why[1:]}") from None


def write_crash_log(error: BaseException) -> Path | None:
    """Write the traceback of an unexpected error below the site's `logs/`; `None` if that fails."""
    import time
    import traceback

    try:
        folder = site().home / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except Exception:
        return None
    return path
