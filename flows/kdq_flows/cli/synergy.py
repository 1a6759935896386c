"""`kdq synergy`: does distillation help quantization, and the other way round?"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import RecipeFile

if TYPE_CHECKING:
    from kdq_flows.facts.synergy import Cell, Synergy


def register_commands(app: typer.Typer) -> None:
    """Add `synergy`."""
    app.command("synergy", rich_help_panel="Inspect")(synergy)


def synergy(
    file: RecipeFile,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Number of paired seeds.")] = 5,
    bits: Annotated[str, typer.Option("--bits", help="Bits of the weights, with commas.")] = "8",
    distillers: Annotated[
        str, typer.Option("--distillers", help="Further distillers with their defaults, with commas.")
    ] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the page to this file.")] = None,
    server: Annotated[bool, typer.Option("--server/--no-server", help="Run with Prefect, or inline.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")] = False,
) -> None:
    """Run {no KD, each distiller} x {float, PTQ, QAT} with equal epochs, and say which of them help each other."""
    from kdq_core.errors import RecipeError
    from kdq_core.reading.checks import study_section
    from kdq_core.reading.recipe_file import read_document
    from kdq_flows.cli.run import Progressing

    document = read_document(file)
    section = study_section(document)
    if section:
        raise RecipeError(
            f"{document.where((section,))}: 'kdq synergy' makes branches of its own; leave {section!r} out"
        )
    wanted = _bits(bits)
    if output is not None and not output.parent.is_dir():
        raise RecipeError(f"--output: there is no folder '{output.parent}'; make it, or name another file")
    with contextlib.redirect_stdout(sys.stderr):  # stdout is KDQ's: plug-ins print too
        from kdq_flows.running import run_study
        from kdq_flows.synergy import synergy_of, synergy_study

        named = [name.strip() for name in distillers.split(",") if name.strip()]
        study = synergy_study(document, seeds=seeds, bits=wanted, distillers=named)
        observer = Progressing(bars=sys.stderr.isatty())
        with observer.live():
            run, error = run_study(study, common.site(), server=server, observer=observer)
        if error is not None:
            raise error
        found = synergy_of(run, wanted)
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        _show(found)
    if output is not None:
        from kdq_flows.report.kept import write
        from kdq_flows.report.tables import synergy_page

        with common.writing(output):
            write(output, synergy_page(found))


def _bits(text: str) -> list[int]:
    from kdq_core.errors import RecipeError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and 2 <= int(part) <= 8 for part in parts):
        raise RecipeError(f"--bits is {text!r}; write numbers from 2 to 8 with commas, such as 8,4,2")
    return list(dict.fromkeys(map(int, parts)))


def _show(found: Synergy) -> None:
    scale = 100.0 if found.unit == "fraction" else 1.0

    def form(value: float) -> str:
        return f"{scale * value:.2f}" if scale > 1 else f"{value:.4g}"

    def column(cell: Cell) -> str:
        return "float" if cell.path == "float" else f"{cell.path} W{cell.bits}"

    columns = dict.fromkeys(map(column, found.cells))
    order = sorted(columns, key=lambda name: (name != "float", name.split(" ")[-1], name))
    rows: dict[str, dict[str, object]] = {}
    for cell in found.cells:
        interval = f" ({form(cell.low)} to {form(cell.high)})" if len(cell.values) > 1 else ""
        empty: dict[str, object] = {"distiller": cell.distiller, **dict.fromkeys(order, "")}
        rows.setdefault(cell.distiller, empty)[column(cell)] = f"{form(cell.mean)}{interval}"
    unit = f"{found.metric} in %" if scale > 1 else found.metric
    title = f"{found.recipe}: {unit}, {found.seeds} seeds, {found.epochs} epochs of each student"
    common.show(list(rows.values()), title=title, as_json=False)
    effects: list[dict[str, object]] = [
        {
            "effect": one.name,
            "distiller": one.distiller,
            "bits": one.bits,
            "mean": form(one.mean),
            "95 %": f"{form(one.low)} to {form(one.high)}",
            "verdict": one.verdict,
        }
        for one in found.effects
    ]
    common.show(effects, title="Effects, paired over the seeds; more is better", as_json=False)
    for line in found.sentences:
        common.say(line)
