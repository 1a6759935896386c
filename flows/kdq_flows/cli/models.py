"""`kdq models`, `kdq history`, `kdq diff`, `kdq pull`, `kdq verify` and `kdq gc`: look at the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import JsonFlag

if TYPE_CHECKING:
    from kdq_registry.history import Verified
    from kdq_registry.pulling import Checked

ModelName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the registered model.")]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="A policy file: gates, trusted signers, comparison.")
]


def models(
    everything: Annotated[
        bool, typer.Option("--all", help="Show more than the 50 newest versions of a model.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the registered models: versions, aliases, quality, size."""
    from kdq_registry.listing import list_models

    site = common.site()
    rows, notes = list_models(site, everything=everything)
    common.notes(notes)
    if rows or as_json:
        shown = rows if as_json else [row | {"aliases": ", ".join(row["aliases"])} for row in rows]
        common.show(shown, title="Registered models", as_json=as_json)
    else:
        typer.echo(f"no registered model in {str(site.home)!r}; register one with `kdq run FILE`")


def history(
    name: ModelName,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every entry of the chain, and say who signed.")
    ] = False,
    head: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="With --verify: an entry that the chain must have.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List who promoted what, when and why, refusals and lost races included."""
    from kdq_core.errors import RecipeError
    from kdq_registry.history import history as entries_of
    from kdq_registry.history import verify_history

    if head and not verify:
        raise RecipeError("--head names an entry to look for, and only --verify looks for it; add --verify")
    if verify:
        found = verify_history(common.site(), name, head)
        if as_json:
            typer.echo(json.dumps(found.model_dump(mode="json"), indent=2))
        else:
            typer.echo("\n".join(found.wrong) or f"the chain of {name!r} is whole; its head is {found.head}")
            for line in _signatures(found):
                common.say(line)
        raise typer.Exit(1 if found.wrong else 0)
    rows, notes = entries_of(common.site(), name)
    common.notes(notes)
    if rows or as_json:
        common.show(rows if as_json else _shown(rows), title=f"History of {name}", as_json=as_json)
    else:
        typer.echo(f"nothing was promoted in {name!r} yet; `kdq promote {name} VERSION` does")


def diff(
    name: ModelName,
    first: Annotated[int, typer.Argument(metavar="A", min=1, help="Number of a version.")],
    second: Annotated[int, typer.Argument(metavar="B", min=1, help="Number of another version.")],
    as_json: JsonFlag = False,
) -> None:
    """Show what differs between two versions: metrics, origin, recipe, packages, gates, files."""
    from kdq_registry.differences import differences

    rows = differences(common.site(), name, first, second)
    if rows or as_json:
        common.show(rows, title=f"Differences of {name} versions {first} and {second}", as_json=as_json)
    else:
        typer.echo(f"versions {first} and {second} of {name!r} have the same seal")


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME@ALIAS or NAME/NUMBER.")],
    to: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    policy: PolicyFile = None,
    sign_with: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An EC key (PEM): write DIR.sig, which OpenSSF's model_signing verifies."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring the files of a version into a new folder, each checked against the seal."""
    from kdq_registry.openssf import check_key, sign_folder
    from kdq_registry.pulling import pull as pulled

    if sign_with is not None:
        check_key(sign_with)
    found = pulled(common.site(), model, to, signers=_signers(policy))
    if sign_with is not None:
        common.say(f"{sign_folder(to, sign_with)} is the signature for model_signing", err=True)
    _tell(found, f"pulled to {str(to)!r}", as_json=as_json)


def verify(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A pulled folder, NAME@ALIAS or NAME/NUMBER.")],
    policy: PolicyFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Check files against their seal, and let the model answer its golden batch in a clean process."""
    from kdq_registry.pulling import verify as verified

    _tell(verified(common.site(), what, signers=_signers(policy)), "answers as sealed", as_json=as_json)


def gc(
    keep: Annotated[int, typer.Option(min=0, help="How many of the newest versions of each model stay.")] = 10,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; otherwise they are only listed.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List, or delete, versions that were never promoted, and what killed registrations left."""
    from kdq_registry.collecting import collect

    rows = collect(common.site(), keep=keep, delete=delete)
    if rows or as_json:
        common.show(rows, title="Deleted" if delete else "To delete (add --delete)", as_json=as_json)
    else:
        typer.echo("nothing to delete")


def register_commands(app: typer.Typer) -> None:
    """Add the commands that look at the registry."""
    for command in (models, history, diff, pull, verify, gc):
        app.command(command.__name__, rich_help_panel="Registry")(command)


def _signers(policy: Path | None) -> tuple[str, ...]:
    from kdq_registry.policy import read_policy

    return () if policy is None else read_policy(policy).signers


def _tell(found: Checked, done: str, *, as_json: bool) -> None:
    common.notes(found.notes)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2))
        return
    signed = f"signed by {found.signer}" if found.signer else "not signed"
    common.say(f"{found.what}: {found.files} files as sealed ({found.seal[:12]}), {signed}; {done}")


def _signatures(found: Verified) -> Iterator[str]:
    """Who signed which entries."""
    for signer, entries in found.signed.items():
        yield f"signed by {signer}: {_numbers(entries)}"
    if found.unsigned:
        yield f"signed by nobody: {_numbers(found.unsigned)}"


def _numbers(entries: Sequence[int]) -> str:
    """`3 entries (1-2, 5)`."""
    runs: list[list[int]] = []
    for entry in entries:
        if runs and entry == runs[-1][-1] + 1:
            runs[-1][1:] = [entry]
        else:
            runs.append([entry])
    count = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
    return f"{count} ({', '.join('-'.join(map(str, run)) for run in runs)})"


def _shown(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The columns of a history that fit a terminal."""
    return [
        {
            "#": row["sequence"],
            "time": str(row["time"])[:19],
            "actor": row["actor"],
            "kind": row["kind"] if row["lost_to"] is None else f"lost to {row['lost_to']}",
            "alias": row["alias"],
            "from": row["from"],
            "to": row["to"],
            "reason": row["reason"],
            "digest": str(row["digest"])[:12],
        }
        for row in rows
    ]
