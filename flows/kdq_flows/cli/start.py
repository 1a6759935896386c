"""`kdq init` and `kdq check`: a first recipe that runs at once, and what is wrong with one before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Recipe
    from kdq_flows.preflight.findings import Finding

FROM = ("vision", "text", "audio", "tabular", "quantize")
WEIGHTS = "weights.safetensors"
"""The file that the module of `quantize` writes when Python runs it."""


def register_commands(app: typer.Typer) -> None:
    """Add `init` and `check`."""
    app.command("init", rich_help_panel="Run")(init)
    app.command("check", rich_help_panel="Inspect")(check)


def init(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to write; made if it is not there.")] = Path(
        "."
    ),
    start: Annotated[
        str, typer.Option("--from", help=f"{', '.join(FROM[:-1])}, or {FROM[-1]} for a model that is trained.")
    ] = FROM[0],
) -> None:
    """Write a recipe and a Python module that run at once, for you to replace data and model."""
    from kdq_core.errors import RecipeError, did_you_mean
    from kdq_flows.templates import templates, written

    if start not in FROM:
        raise RecipeError(f"no start named {start!r}{did_you_mean(start, FROM) or '.'} There are: {', '.join(FROM)}.")
    files = {path.name: path.read_text(encoding="utf-8") for path in templates("start", start)}
    made = written(folder, files, also=(WEIGHTS,) if start == "quantize" else ())
    if start == "quantize":
        made.append(_trained(folder))
    for path in made:
        typer.echo(f"wrote  {path}")
    here = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    typer.echo(f"\n{here}kdq check recipe.yaml        # what would go wrong, in seconds")
    typer.echo(f"{here}kdq run recipe.yaml          # under a minute on two cores")
    typer.echo(f"then put your own data and model into {folder / 'my_model.py'}: the two functions marked REPLACE")


def _trained(folder: Path) -> Path:
    """Run the module, which trains its network and writes the weights.

    Raises:
        StageError: it failed.
    """
    import subprocess
    import sys

    from kdq_core.errors import StageError

    done = subprocess.run([sys.executable, "my_model.py"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise StageError(f"{str(folder / 'my_model.py')!r} could not write its weights: {lines[-1]}; run it yourself")
    return folder / WEIGHTS


def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The recipe, a YAML file; or the Python file of `kdq compress`.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Find what would go wrong in a run, in seconds: data, models, quantizers and export, without any training."""
    site = common.site()
    from kdq_flows.own import checked, compressing
    from kdq_flows.preflight.findings import findings

    def load() -> Recipe:
        return checked(compressing(str(file))) if file.suffix == ".py" else common.load_recipe(file, files=True)

    found: list[Finding] = []
    for one in findings(load, site):
        found.append(one)
        if not as_json:
            typer.echo(f"{one.check:11} {'ok     ' if one.ok else 'error  '} {one.says}")
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in found], indent=2, ensure_ascii=False))
    if not all(one.ok for one in found):
        raise typer.Exit(2)
