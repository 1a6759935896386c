"""Commands for servers and schedules: `up`, `down`, `serve`, `deploy`, `doctor`, `reconcile`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import JsonFlag, RecipeFile

Missed = Literal["one", "none", "all"]
Overlap = Literal["skip", "queue", "cancel"]
Pool = Annotated[str | None, typer.Option(help="Name of the work pool; by default KDQ_POOL, or one of this home.")]


def register_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the application."""
    for command in (up, down, serve, deploy, doctor, reconcile):
        app.command(rich_help_panel="Operate")(command)


def up(as_json: JsonFlag = False) -> None:
    """Start the site's Prefect server and MLflow page, if they are not running."""
    from kdq_flows.prefect.owed import settle
    from kdq_flows.servers import servers
    from kdq_registry.page import training_page

    site = common.site()
    addresses = servers.up(site)
    common.notes(settle(site))
    page = addresses.mlflow_ui and training_page(addresses.mlflow_ui)
    rows: list[dict[str, object]] = [
        {"server": "Prefect", "page": addresses.prefect_ui, "api": addresses.prefect_api},
        {"server": "MLflow", "page": page, "api": site.mlflow_uri},
    ]
    common.show(rows, title="servers", as_json=as_json)


def down(as_json: JsonFlag = False) -> None:
    """End the site's servers and worker."""
    from kdq_flows.servers import servers

    names = servers.down(common.site())
    if as_json or names:
        common.show([{"ended": name} for name in names], title="ended", as_json=as_json)
    else:
        typer.echo("nothing was running")


def serve(
    pool: Pool = None,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="Run stages of runs with the executor `pool`, instead of schedules.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --nodes: so many stages at once.")
    ] = None,
) -> None:
    """Run scheduled compressions in the foreground, until Ctrl-C."""
    from kdq_flows.prefect.serve import serve as run

    run(common.site(pool=pool, workers=workers), nodes=nodes, say=typer.echo)


def deploy(
    file: RecipeFile,
    cron: Annotated[str | None, typer.Option(help="When, such as '0 3 * * *'.")] = None,
    interval: Annotated[float | None, typer.Option(help="Seconds from one run to the next.")] = None,
    on: Annotated[
        Literal["data"] | None, typer.Option(help="Also run when the data have changed; then a time is not needed.")
    ] = None,
    look: Annotated[
        float | None, typer.Option(help="With --on: seconds from one look at the data to the next; 300 by default.")
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA name, such as Europe/Berlin; UTC by default.")] = None,
    missed: Annotated[
        Missed, typer.Option(help="What runs after an outage: the newest run that was missed, none, or all.")
    ] = "one",
    overlap: Annotated[
        Overlap,
        typer.Option(help="A run that is due while the one before runs: skip it, queue it, or cancel the one before."),
    ] = "skip",
    allowed_lag: Annotated[
        float | None,
        typer.Option(help="A run that starts more seconds late is missed; by default it is when the next one is due."),
    ] = None,
    pool: Pool = None,
    as_json: JsonFlag = False,
) -> None:
    """Schedule a recipe; `kdq serve` runs it."""
    from kdq_core.errors import RecipeError

    if look is not None and on is None:
        raise RecipeError("'--look' says how often KDQ looks at the data, and belongs to '--on data'; give both")
    recipe = common.load_any(file)
    from kdq_flows.prefect.news import LOOK_SECONDS
    from kdq_flows.prefect.schedules import deploy as run

    facts = run(
        common.site(pool=pool),
        recipe,
        cron=cron,
        interval_seconds=interval,
        timezone=timezone,
        allowed_lag_seconds=allowed_lag,
        missed=missed,
        overlap=overlap,
        look_seconds=None if on is None else LOOK_SECONDS if look is None else look,
    )
    table: list[dict[str, object]] = [{"fact": name, "value": str(value)} for name, value in facts.items()]
    common.show([facts] if as_json else table, title="deployed; `kdq serve` runs it", as_json=as_json)


def doctor(as_json: JsonFlag = False) -> None:
    """Check this installation: home, versions, disk, devices, leases, servers, clock, and that schedules fire."""
    from kdq_flows.seeing.doctor import doctor as run

    rows = run(common.site())
    common.show(rows, title="doctor", as_json=as_json)
    if any(row["verdict"] != "ok" for row in rows):
        raise typer.Exit(1)


def reconcile(as_json: JsonFlag = False) -> None:
    """Upload what runs could not tell MLflow and Prefect, and close runs that dead processes left open."""
    from kdq_flows.prefect.reconcile import reconcile as run

    lines = run(common.site())
    if as_json or lines:
        common.show([{"closed": line} for line in lines], title="closed", as_json=as_json)
    else:
        typer.echo("nothing to upload or close")
