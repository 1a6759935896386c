"""`kdq runs`, `kdq logs`, `kdq status`, `kdq cancel`."""

from __future__ import annotations

import datetime
import json
from typing import Annotated, Any

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import JsonFlag

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of a run, as `kdq runs` has it; or a recipe, its last run.")
]


def register_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("runs", rich_help_panel="Inspect")(runs)
    app.command("logs", rich_help_panel="Inspect")(logs)
    app.command("status", rich_help_panel="Operate")(status)
    app.command("cancel", rich_help_panel="Operate")(cancel)


def runs(
    limit: Annotated[int, typer.Option(min=1, help="How many runs to show.")] = 20, as_json: JsonFlag = False
) -> None:
    """Show the runs of this home, newest first."""
    from kdq_flows.seeing.runs import row_of, runs_of

    site = common.site()
    found = runs_of(site)
    rows = [row_of(one) for one in found[:limit]]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif rows:
        common.show([_cells(row) for row in rows], title=f"{len(rows)} of {len(found)} runs", as_json=False)
    else:
        typer.echo(f"{str(site.home)!r} has no run yet; make one with `kdq run FILE`")


def _cells(row: dict[str, Any]) -> dict[str, object]:
    from kdq_flows.run.pace import in_words

    version = row["version"]
    return {
        "run": row["run"],
        "recipe": row["recipe"],
        "status": row["status"],
        "when": _local(row["when"]),
        "took": "" if row["seconds"] is None else in_words(row["seconds"]),
        "stages": ", ".join(f"{count} {state}" for state, count in row["stages"].items()),
        "branches": row["branches"] or "",
        "int8": ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                          for name, value in row["metric"].items()),
        "version": f"{version['name']}/{version['version']}" if version else "",
    }  # fmt: skip


def logs(
    run: RunName,
    stage: Annotated[str | None, typer.Option(help="Only the log of this stage.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Print the logs of a run, also while it runs."""
    from kdq_flows.seeing.logs import lines
    from kdq_flows.seeing.runs import find

    site = common.site()
    state, last = find(site, run), None
    for name, text in lines(site, state, stage, follow=follow, again=lambda: find(site, state.run)):
        if name not in (last, stage):
            typer.echo(f"{'' if last is None else chr(10)}==> {name} <==")
        last = name
        typer.echo(text, nl=False)


def status(as_json: JsonFlag = False) -> None:
    """Show what is running now in this home: runs with their stages, devices and their holders, servers."""
    from kdq_flows.seeing.status import status as look

    found = look(common.site())
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows: list[dict[str, object]] = [
        {"run": run["run"], "stage": stage.get("stage", "between stages"), "process": run["pid"],
         "since": _local(stage.get("since", run["since"])), "progress": _progress(stage), "note": stage.get("note", "")}
        for run in found["runs"] for stage in run["now"] or [{}]
    ]  # fmt: skip
    if rows:
        common.show(rows, title="runs", as_json=False)
    else:
        typer.echo("no run is running")
    for title in ("devices", "servers"):
        if found[title]:
            common.show(found[title], title=title, as_json=False)


def _progress(stage: dict[str, Any]) -> str:
    share, epoch = stage.get("progress"), stage.get("epoch")
    return ", ".join([*([f"{share:.0%}"] if share is not None else []), *([f"epoch {epoch}"] if epoch else [])])


def cancel(run: RunName) -> None:
    """End a running run as Ctrl-C does: it keeps its state, and the same command resumes it."""
    from kdq_flows.seeing.cancel import cancel as end

    common.say(end(common.site(), run))


def _local(when: str) -> str:
    return datetime.datetime.fromisoformat(when).astimezone().strftime("%Y-%m-%d %H:%M:%S")
