"""`kdq watch`."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import JsonFlag


def register_commands(app: typer.Typer) -> None:
    """Add `watch`."""
    app.command("watch", rich_help_panel="Registry")(watch)


def watch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME@ALIAS or NAME/NUMBER, such as digits@champion.")],
    quality: Annotated[float, typer.Option(min=0, help="How much a share such as top-1 may fall.")] = 0.005,
    latency: Annotated[float, typer.Option(min=1, help="Factor by which times may grow.")] = 1.25,
    again: Annotated[bool, typer.Option("--again", help="Measure even if nothing changed.")] = False,
    accept: Annotated[bool, typer.Option("--accept", help="Take the figures of this look as good.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure a version again if torch, the runtime or the CPU changed; exit code 1 if it became worse."""
    from kdq_flows.cli.run import Progressing
    from kdq_flows.watch import Tolerances
    from kdq_flows.watch import watch as look_at

    observer = Progressing(bars=sys.stderr.isatty())
    with contextlib.redirect_stdout(sys.stderr), observer.live():
        found = look_at(
            common.site(), model, Tolerances(quality=quality, latency=latency), again=again, accept=accept,
            observer=observer,
        )  # fmt: skip
    for note in found.notes:
        common.say(f"note: {note}", err=True)
    look = found.look
    if as_json:
        worse = [row.what for row in look.worse]
        typer.echo(json.dumps(found.model_dump(mode="json") | {"worse": worse}, indent=2))
    else:
        if found.measured:
            rows: list[dict[str, object]] = [
                {"figure": r.what, "then": _number(r.then), "now": _number(r.now), "allowed": _number(r.bound),
                 "verdict": r.verdict}
                for r in look.rows
            ]  # fmt: skip
            common.show(rows, title=f"{found.name} version {look.version}", as_json=False)
            changes = [f"{name} {old} -> {new}" for name, (old, new) in found.changed.items() if old is not None]
            common.say(f"measured: {look.how}; {'changed: ' + ', '.join(changes) if changes else 'first look'}"
                       if found.changed else f"measured: {look.how}; nothing changed since the last look")  # fmt: skip
        else:
            common.say(f"nothing changed since {look.when}; --again measures anyway")
        said = ", ".join(row.what for row in look.worse)
        common.say(f"{model} is worse than before: {said}" if said else f"{model} is as good as before")
    if look.worse:
        raise typer.Exit(1)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
