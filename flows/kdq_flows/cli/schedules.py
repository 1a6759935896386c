"""`kdq schedules`: the schedules that `kdq deploy` made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import JsonFlag

if TYPE_CHECKING:
    from datetime import datetime

schedules = typer.Typer(help="The schedules that `kdq deploy` made.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of the schedule, which is that of its recipe.")]


def register_commands(app: typer.Typer) -> None:
    """Add `schedules` and its commands."""
    app.add_typer(schedules, name="schedules", rich_help_panel="Operate")


@schedules.command()
def ls(as_json: JsonFlag = False) -> None:
    """List the schedules: when the next run is due, and how the last one ended."""
    from kdq_flows.prefect.deployed import connected
    from kdq_flows.prefect.deployed import schedules as listed
    from kdq_flows.prefect.pools import pool_of

    with connected(site := common.site()) as client:
        found = listed(client, pool_of(site))
    if as_json:
        common.show([one.model_dump(mode="json") for one in found], title="", as_json=True)
    elif not found:
        typer.echo("no schedules; `kdq deploy FILE` makes one")
    else:
        rows: list[dict[str, object]] = [
            {
                "name": one.name,
                "recipe": one.recipe,
                "schedule": one.schedule,
                "next run": "paused" if one.paused else _at(one.next_run),
                "last run": f"{one.last_run.state} {_at(one.last_run.time)}" if one.last_run else "",
                "missed": one.missed,
                "overlap": one.overlap,
            }
            for one in found
        ]
        common.show(rows, title="schedules", as_json=False)


@schedules.command()
def pause(name: Name) -> None:
    """Let no run of a schedule begin by the clock."""
    from kdq_flows.prefect import deployed
    from kdq_flows.prefect.pools import pool_of

    with deployed.connected(site := common.site()) as client:
        deployed.pause(client, pool_of(site), name)
    typer.echo(f"{name} is paused; `kdq schedules resume {name}` goes on")


@schedules.command()
def resume(name: Name) -> None:
    """End the pause of a schedule."""
    from kdq_flows.prefect import deployed
    from kdq_flows.prefect.pools import pool_of

    with deployed.connected(site := common.site()) as client:
        deployed.resume(client, pool_of(site), name)
    typer.echo(f"{name} is resumed")


@schedules.command()
def rm(name: Name) -> None:
    """Remove a schedule. A run that is at work ends as it would; results and versions stay."""
    from kdq_flows.prefect import deployed
    from kdq_flows.prefect.pools import pool_of

    with deployed.connected(site := common.site()) as client:
        deployed.remove(client, pool_of(site), name)
    typer.echo(f"{name} is removed")


@schedules.command()
def run(name: Name) -> None:
    """Ask for a run of a schedule at once; `kdq serve` begins it."""
    from kdq_flows.prefect import deployed
    from kdq_flows.prefect.pools import pool_of

    with deployed.connected(site := common.site()) as client:
        flow_run = deployed.run_now(client, pool_of(site), name)
    typer.echo(f"{name} runs as soon as `kdq serve` has a free worker; the flow run is {flow_run!r}")


def _at(time: datetime | None) -> str:
    return "" if time is None else time.astimezone().isoformat(sep=" ", timespec="seconds")
