"""`kdq quantize` and `kdq compress`: a model of the user's own, without a recipe or a package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdq_flows.cli import common
from kdq_flows.cli.completion import quantizers, targets
from kdq_flows.cli.run import finish

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Recipe
    from kdq_flows.facts.result import RunResult

TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="The runtime, such as openvino; or the column of a table with the labels.",
        autocompletion=targets,
    ),
]
DATA = "npz, safetensors, CSV, Parquet, a folder of images, or file.py:function."
DataOption = Annotated[str | None, typer.Option("--data", help=DATA)]
WeightsOption = Annotated[str | None, typer.Option("--weights", help="The trained weights, a safetensors file.")]
QatOption = Annotated[bool, typer.Option("--qat", help="Train the quantized model on the labels.")]
BitsOption = Annotated[int, typer.Option("--bits", min=2, max=8, help="Bits of the weights.")]
QuantizerOption = Annotated[
    str | None, typer.Option("--quantizer", help="Name of a quantizer.", autocompletion=quantizers)
]
EpochsOption = Annotated[int | None, typer.Option("--epochs", min=1, help="Epochs of training.")]
RegisterOption = Annotated[str | None, typer.Option("--register", metavar="NAME", help="Register the file in MLflow.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for the file and the report; default: NAME-int8.")
]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="Also write the equivalent recipe to this file.")]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the recipe; default: that of the file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout, as kdq run does.")]
LossOption = Annotated[
    str | None,
    typer.Option("--loss", help="cross-entropy, bce, mse, ctc, or file.py:function; default: by the labels."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the workload, such as size=32.")
]


def register_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("quantize", rich_help_panel="Run")(quantize)
    app.command("compress", rich_help_panel="Run")(compress)


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="file.py:function that makes the model.")],
    data: Annotated[str, typer.Option("--data", help=DATA)],
    weights: WeightsOption = None,
    target: TargetOption = None,
    bits: BitsOption = 8,
    qat: QatOption = False,
    quantizer: QuantizerOption = None,
    epochs: EpochsOption = None,
    loss: LossOption = None,
    settings: SetOption = None,
    register: RegisterOption = None,
    output: OutputOption = None,
    recipe: RecipeOption = None,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Quantize a trained model of yours: calibrate, export, measure, and write the int8 file."""
    from kdq_flows.own import quantizing

    made = quantizing(
        model, data, common.site(), weights=weights, targets=target or (), options=options_of(settings), loss=loss,
        bits=bits, quantizer=quantizer, qat=qat, epochs=epochs, register=register, name=name,
    )  # fmt: skip
    _run(made, output, recipe, as_json=as_json)


def compress(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Python file with teacher(), student(), data(split).")],
    target: TargetOption = None,
    bits: BitsOption = 8,
    quantizer: QuantizerOption = None,
    epochs: EpochsOption = None,
    register: RegisterOption = None,
    output: OutputOption = None,
    recipe: RecipeOption = None,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a teacher, distil a student, quantize it, export and measure it: models and data are functions of yours."""
    from kdq_flows.own import compressing

    made = compressing(
        file, targets=target or (), bits=bits, quantizer=quantizer, epochs=epochs, register=register, name=name
    )
    _run(made, output, recipe, as_json=as_json)


def options_of(settings: list[str] | None) -> dict[str, Any]:
    """The options of `--set`; values are YAML.

    Raises:
        RecipeError: one has no `=`.
    """
    import yaml

    from kdq_core.errors import RecipeError

    found = {}
    for one in settings or ():
        key, sign, value = one.partition("=")
        if not sign:
            raise RecipeError(f"--set {one!r} has no '='; write OPTION=VALUE, such as size=32")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[key] = value
    return found


def _run(recipe: dict[str, Any], output: Path | None, written: Path | None, *, as_json: bool) -> None:
    """Run a recipe inline, and copy its file and report."""
    from kdq_flows.facts.report import yaml_of
    from kdq_flows.own import checked

    text = yaml_of(recipe)

    def load() -> Recipe:
        found = checked(recipe)
        if written is not None:
            _write(written, text)
        typer.echo(f"the equivalent recipe{f', also in {str(written)!r}' if written else ''}:\n{text}", err=True)
        return found

    result = finish(load, Path(recipe["name"]), server=False, as_json=as_json)
    folder = output or Path(f"{recipe['name']}-int8")
    _deliver(result, folder, text)
    typer.echo(f"written   {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}", err=as_json)


def _deliver(result: RunResult, folder: Path, recipe: str) -> None:
    """Copy the int8 file and the page of the run, and write the report beside them."""
    import shutil

    from kdq_flows.facts.report import report

    if result.artifact is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(result.artifact.path, folder / Path(result.artifact.path).name)
    if result.report is not None:
        shutil.copyfile(result.report, folder / "report.html")
    _write(folder / "report.md", report(result, recipe))
    _write(folder / "result.json", result.model_dump_json(indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    with common.writing(path):
        path.write_text(text, encoding="utf-8")
