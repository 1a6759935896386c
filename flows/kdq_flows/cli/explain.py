"""`kdq explain`: which layer costs the quality, and the rules that would mend it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.report import RunName

if TYPE_CHECKING:
    from kdq_core.tensors import Split
    from kdq_core.work.effects import Explained

SHOWN = 12
"""Rows of the table; --json has all."""


def register_commands(app: typer.Typer) -> None:
    """Add `explain`."""
    app.command("explain", rich_help_panel="Inspect")(explain)


def explain(
    run: RunName,
    samples: Annotated[int, typer.Option("--samples", min=1, help="The most samples to look at.")] = 512,
    split: Annotated[
        str, typer.Option("--split", help="Where they are from: validation, test or train.")
    ] = "validation",
    apply: Annotated[
        Path | None, typer.Option("--apply", metavar="FILE", help="Write the recipe with the proposed rules.")
    ] = None,
    as_json: common.JsonFlag = False,
) -> None:
    """Find the layers that cost the int8 model its quality: each one quantized alone, and all but it."""
    import contextlib
    import sys

    from kdq_core.errors import RecipeError
    from kdq_core.store.store import Store
    from kdq_flows.report import explain as explaining
    from kdq_flows.report import kept

    splits: tuple[Split, ...] = ("validation", "test", "train")
    chosen = next((one for one in splits if one == split), None)
    if chosen is None:
        raise RecipeError(f"--split is {split!r}; allowed: {', '.join(splits)}")
    site = common.site()
    record = kept.find(site, run)
    with contextlib.redirect_stdout(sys.stderr):  # what plug-ins print
        say = partial(common.say, err=True)
        found = explaining.explained(site, record, samples=samples, split=chosen, tell=say)
    if apply is not None and found.rules:
        try:
            kept.write(apply, explaining.with_rules(record.recipe, found.rules))
        except OSError as error:
            raise RecipeError(f"'{apply}' cannot be written: {str(error.strerror).lower()}") from None
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    common.show(_rows(found), title=f"Layers of {record.result.run}, worst first", as_json=False)
    size = explaining.predicted_bytes(record.view(Store(site.store)), found.rules)
    for line in _lines(found, size):
        common.say(line)
    if apply is not None:
        common.say(f"written   {apply}" if found.rules else f"{apply} was not written: there is no rule to add")


def _rows(found: Explained) -> list[dict[str, object]]:
    return [
        {
            "layer": one.layer,
            "what": one.role,
            "bits": one.bits,
            "SQNR dB": one.sqnr_db,
            "alone dB": one.alone_db,
            "alone": _share(one.alone),
            "all but it": _share(one.without),
            "clipped": f"{one.clipped:.2%}",
            "outliers": f"{one.outliers:.1f}x",
        }
        for one in found.effects[:SHOWN]
    ]


def _lines(found: Explained, size: int | None) -> list[str]:
    """The outcome in words, and the rules as a recipe writes them."""
    from kdq_flows.facts.report import yaml_of
    from kdq_flows.report.explain import rules_of

    shipped = f"as shipped {_share(found.quantized)}, in float {_share(found.in_float)}" if found.quantized else ""
    lines = [f"{found.samples} samples: {shipped or 'no classes'}, outputs {found.quantized_db:.1f} dB"]
    if found.origin is not None:
        lines.append(
            f"outliers begin in {found.origin.layer!r}: one channel of its weights is {found.origin.outliers:.0f} "
            "times as wide as the median channel; look at these weights, or try 'quantize.equalize: true'"
        )
    if not found.rules:
        return [*lines, "no rule is proposed: quality is that of float, or no layer left out brings it back"]
    more = f" and {size:,} bytes" if size is not None else ""
    return [
        *lines,
        f"with these rules {_share(found.predicted)} is predicted{more}:",
        yaml_of({"quantize": {"rules": rules_of(found.rules)}}).rstrip(),
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
