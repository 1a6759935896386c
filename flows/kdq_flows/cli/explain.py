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
    from kdq_core.work.effects import Explained, Files

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
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", metavar="COLUMN", help="A column of the data; repeatable. Default: all it has."),
    ] = None,
    apply: Annotated[
        Path | None, typer.Option("--apply", metavar="FILE", help="Write the recipe with the proposed rules.")
    ] = None,
    as_json: common.JsonFlag = False,
) -> None:
    """Find where the int8 model loses quality: layers, classes, slices of the data, samples; and rules against it."""
    import contextlib
    import sys

    from kdq_core.errors import RecipeError
    from kdq_core.plugins.contract import Needs
    from kdq_flows.report import explain as explaining
    from kdq_flows.report import kept
    from kdq_flows.run.leases import lease

    splits: tuple[Split, ...] = ("validation", "test", "train")
    chosen = next((one for one in splits if one == split), None)
    if chosen is None:
        raise RecipeError(f"--split is {split!r}; allowed: {', '.join(splits)}")
    site = common.site()
    record = kept.find(site, run)
    with contextlib.redirect_stdout(sys.stderr):  # what plug-ins print
        say = partial(common.say, err=True)
        found = explaining.explained(
            site, record, samples=samples, split=chosen, tell=say, slices=slices or (),
            alone=partial(lease, site, Needs(device="cpu", alone=True)),
        )  # fmt: skip
    if apply is not None and found.rules:
        with common.writing(apply):
            kept.write(apply, explaining.with_rules(record.recipe, found.rules))
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    name = record.result.run
    common.show(_rows(found), title=f"Layers of {name}, worst first", as_json=False)
    if found.files is not None and found.files.parts:
        common.show(_parts(found.files), title=f"Classes and slices of {name}, worst first", as_json=False)
    for line in (*_lines(found), *_patch(found)):
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
            "range": f"{one.beyond:.2f}x",
            "outliers": f"{one.outliers:.1f}x",
        }
        for one in found.effects[:SHOWN]
    ]


def _parts(files: Files) -> list[dict[str, object]]:
    return [
        {
            "column": one.column,
            "value": one.value,
            "samples": one.samples,
            "float": _share(one.in_float),
            "int8": _share(one.in_int8),
            "difference": f"{100 * (one.in_int8 - one.in_float):+.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})",
            "": {"lost": "int8 LOST it", "weak": "worse than the rest"}.get(one.verdict, ""),
        }
        for one in files.parts[:SHOWN]
    ]


def _lines(found: Explained) -> list[str]:
    """What was found, in words."""
    shipped = f"int8 {_share(found.quantized)}, float {_share(found.in_float)}" if found.quantized is not None else ""
    lines = [
        f"{found.samples} samples in the simulation: {shipped or 'no classes'}, outputs {found.quantized_db:.1f} dB"
    ]
    if found.flips is not None:
        lines.append(f"the file answers {found.flips} of them otherwise than the simulation")
    if found.files is not None:
        files = found.files
        both = f"int8 {_share(files.in_int8)}, float {_share(files.in_float)}"
        changed = f"int8 lost {files.lost} answers and gained {files.gained}"
        lines.append(f"the files on {files.samples:,} test samples: {both}; {changed}")
        rows = ", ".join(f"{one.row} ({one.label}: {one.in_float} -> {one.in_int8})" for one in files.flips[:SHOWN])
        lines += [f"samples whose answer changed (label: float -> int8): {rows}"] if rows else []
    if found.origin is not None:
        lines.append(
            f"outliers begin in {found.origin.layer!r}: one channel of its weights is {found.origin.outliers:.0f} "
            "times as wide as the median channel; look at these weights, or try 'quantize.equalize: true'"
        )
    return lines


def _patch(found: Explained) -> list[str]:
    """The rules as a recipe writes them, with what they give."""
    from kdq_flows.facts.report import yaml_of
    from kdq_flows.facts.verdict import between
    from kdq_flows.report.explain import rules_of

    if not found.rules:
        return ["no rule is proposed: quality is that of float, or no layer left out brings it back"]
    lines = [yaml_of({"quantize": {"rules": rules_of(found.rules)}}).rstrip()]
    done = found.patched
    if done is None:
        return ["these rules would mend it in the simulation:", *lines, found.note]
    quality = f"outputs {done.db:.1f} dB" if done.quality is None else _share(done.quality)
    ends = "" if done.low is None else f" (against float {between(done.low, done.high, 100, 1).strip(' ()')} points)"
    times = f"{done.ms:.3g} ms a call beside {done.shipped_ms:.3g} ms without them"
    speed = f"{done.speedup:.3g}x the speed of float{between(done.speedup_low, done.speedup_high)}"
    return [
        f"the file with these rules, run over the test split: {quality}{ends}, {done.bytes:,} bytes, {times}, {speed}:",
        *lines,
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
