"""`kdq cache`: what lies in the store, how much room it takes, and what may go."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import JsonFlag

cache = typer.Typer(help="The store: what lies in it, how much room it takes, what may go.", no_args_is_help=True)


def register_commands(app: typer.Typer) -> None:
    """Add `cache`."""
    app.add_typer(cache, name="cache", rich_help_panel="Operate")


@cache.command("ls")
def ls(
    limit: Annotated[int, typer.Option(min=1, help="How many entries to show.")] = 50, as_json: JsonFlag = False
) -> None:
    """Show the entries of the store, most recently used first: stage, run that used it last, size, age, key."""
    from kdq_flows.report.numbers import number
    from kdq_flows.run.pace import in_words
    from kdq_flows.seeing.cache import listed

    found = listed(common.site())
    if as_json:
        typer.echo(json.dumps(found[:limit], indent=2))
        return
    if not found:
        typer.echo("the store is empty")
        return
    rows: list[dict[str, object]] = [
        {"stage": row["stage"], "last run": row["run"] or "", "size": number(row["bytes"], "bytes"),
         "age": in_words(row["age"]), "unused for": in_words(row["unused"]), "key": row["key"][:12]}
        for row in found[:limit]
    ]  # fmt: skip
    common.show(rows, title=f"{len(rows)} of {len(found)} entries", as_json=False)


@cache.command("du")
def du(as_json: JsonFlag = False) -> None:
    """Show how much room the results of each stage take."""
    from kdq_flows.report.numbers import number
    from kdq_flows.seeing.cache import usage

    found = usage(common.site())
    rows = [{**row, "size": number(row["bytes"], "bytes")} for row in found]
    common.show(found if as_json else [{k: v for k, v in row.items() if k != "bytes"} for row in rows],
                title="store", as_json=as_json)  # fmt: skip


@cache.command("gc")
def gc(
    older: Annotated[str | None, typer.Option(help="What nobody used for so long, such as 30d.")] = None,
    max_size: Annotated[str | None, typer.Option(help="As many as make the store no larger, such as 20GB.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Drop them; otherwise they are only listed.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List, or drop, entries, least recently used first; never what a running run or a registered version needs."""
    import time

    from kdq_flows.report.numbers import number
    from kdq_flows.run.pace import in_words
    from kdq_flows.seeing.cache import bytes_of, collect, seconds_of

    found = collect(
        common.site(), older=None if older is None else seconds_of(older),
        most=None if max_size is None else bytes_of(max_size), delete=delete,
    )  # fmt: skip
    freed, now = sum(one.bytes for one in found.dropped), time.time()
    if as_json:
        told = {
            "deleted": delete, "bytes": freed, "kept_bytes": found.kept, "held": dict(found.held),
            "entries": [{"key": one.key, "stage": one.stage, "bytes": one.bytes, "unused": round(now - one.used)}
                        for one in found.dropped],
        }  # fmt: skip
        typer.echo(json.dumps(told, indent=2))
    else:
        rows: list[dict[str, object]] = [
            {"stage": one.stage, "size": number(one.bytes, "bytes"), "unused for": in_words(now - one.used),
             "key": one.key[:12]} for one in found.dropped
        ]  # fmt: skip
        if rows:
            common.show(rows, title="Dropped" if delete else "To drop (add --delete)", as_json=False)
        done = "freed" if delete else "would free"
        typer.echo(f"{done} {number(freed, 'bytes')} of {number(freed + found.kept, 'bytes')}")
    common.notes([*(f"{count} stay: {why}" for why, count in found.held.items()), *found.notes])


@cache.command("verify")
def verify(
    delete: Annotated[bool, typer.Option("--delete", help="Drop damaged entries; KDQ computes them anew.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Hash every file of the store again; exit code 1 if an entry is damaged."""
    from kdq_flows.seeing.cache import damaged

    found = list(damaged(common.site(), delete=delete))
    bad = [(one, what) for one, what in found if what]
    if as_json:
        rows = [{"key": one.key, "stage": one.stage, "damage": what, "dropped": delete} for one, what in bad]
        typer.echo(json.dumps({"entries": len(found), "damaged": rows}, indent=2))
    else:
        for one, what in bad:
            common.say(f"{one.stage} {one.key[:12]}: {what}{'; dropped' if delete else ''}")
        whole = len(found) - len(bad)
        hint = "; --delete drops them, and the next run computes them anew" if bad and not delete else ""
        typer.echo(f"{whole} of {len(found)} entries are whole{hint}")
    if bad:
        raise typer.Exit(1)
