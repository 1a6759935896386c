"""`kdq init` and `kdq check`: a first recipe that runs at once, and what is wrong with one before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.own import (
    BitsOption,
    DataOption,
    LossOption,
    QatOption,
    QuantizerOption,
    SetOption,
    TargetOption,
    WeightsOption,
    options_of,
)

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
        str,
        typer.Argument(
            metavar="FILE", help="A recipe; the Python file of `kdq compress`; or the MODEL of `kdq quantize`."
        ),
    ],
    data: DataOption = None,
    weights: WeightsOption = None,
    target: TargetOption = None,
    bits: BitsOption = 8,
    qat: QatOption = False,
    quantizer: QuantizerOption = None,
    loss: LossOption = None,
    settings: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Find what would go wrong in a run, in seconds: data, models, quantizers and export, without any training.

    All options but --json are those of `kdq quantize`, for a model.
    """
    site = common.site()
    from kdq_flows.own import checked, compressing, quantizing
    from kdq_flows.preflight.findings import findings

    model = ":" in file and not Path(file).exists()
    _fitting(file, model, data, {
        "--weights": weights, "--target": target, "--bits": bits != 8, "--qat": qat, "--quantizer": quantizer,
        "--loss": loss, "--set": settings,
    })  # fmt: skip

    def load() -> Recipe:
        if not model:
            return checked(compressing(file)) if file.endswith(".py") else common.load_recipe(Path(file), files=True)
        return checked(
            quantizing(
                file, data or "", site, weights=weights, targets=target or (), options=options_of(settings),
                loss=loss, bits=bits, quantizer=quantizer, qat=qat,
            )
        )  # fmt: skip

    found: list[Finding] = []
    for one in findings(load, site):
        found.append(one)
        if not as_json:
            typer.echo(f"{one.check:11} {'ok     ' if one.ok else 'error  '} {one.says}")
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in found], indent=2, ensure_ascii=False))
    if not all(one.ok for one in found):
        raise typer.Exit(2)


def _fitting(file: str, model: bool, data: str | None, asked: dict[str, object]) -> None:
    """Refuse options of a model beside a file, and a model without data."""
    from kdq_core.errors import RecipeError

    given = [name for name, value in {"--data": data, **asked}.items() if value]
    if given and not model:
        raise RecipeError(
            f"{given[0]} goes with a model, such as 'kdq check my_model.py:net --data data.npz', and {file!r} is a "
            "file; change it there, or name a model"
        )
    if model and data is None:
        raise RecipeError(
            f"the model {file!r} needs --data: npz, safetensors, CSV, Parquet, a folder of images, or file.py:function"
        )
