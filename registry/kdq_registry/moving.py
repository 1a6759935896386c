"""Write an act into the chain of promotions, and move the aliases after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdq_core.errors import LostError
from kdq_registry.aliases import CHAMPION, PREVIOUS, deleted, settle, state_of
from kdq_registry.chain import append, head, recent
from kdq_registry.entries import MOVES, Aliases, Kind, Link, new_entry

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site

DID = {"move": "promoted", "force": "forced", "rollback": "rolled back to"}


def move(
    site: Site, mlflow: MlflowClient, name: str, seen: Link | None, *, kind: Kind, alias: str, to: int, **fields: Any
) -> Link:
    """Append a move and set the aliases.

    Args:
        site: whose key signs.
        mlflow: a client of the site.
        name: the model.
        seen: the head of the chain that the decision to move was made on.
        kind: `move`, `force` or `rollback`.
        alias: the alias to move.
        to: number of the version that gets it.
        **fields: further fields of the entry.

    Returns:
        The new link.

    Raises:
        LostError: another process moved an alias since `seen`.
        StageError: the chain is broken.
    """
    before, link = state_of(mlflow, name, seen), seen
    there = {one: number for one, number in before.items() if not deleted(mlflow, name, number)}
    while True:
        entry = new_entry(
            site, name, link, kind=kind, alias=alias, aliases=_after(there, alias, to),
            came_from=before.get(alias), to=to, **fields,
        )  # fmt: skip
        won = append(site, mlflow, entry)
        if won.digest == entry.digest:
            settle(mlflow, name)
            return won
        link = head(mlflow, name)
        # `before` may have been read after the other's move, so that equal aliases alone prove nothing
        moves = _moves_since(mlflow, name, seen)
        if link is None or moves or link.entry.aliases != before:
            raise _lost(name, moves[0] if moves else won, alias, to)


def refuse(site: Site, mlflow: MlflowClient, name: str, *, alias: str, to: int, reason: str, **fields: Any) -> Link:
    """Append a refusal behind whatever is the head; no alias moves.

    Raises:
        StageError: the chain is broken.
    """
    while True:
        link = head(mlflow, name)
        aliases = state_of(mlflow, name, link)
        entry = new_entry(
            site, name, link, kind="refuse", alias=alias, aliases=aliases, came_from=aliases.get(alias), to=to,
            reason=reason, **fields,
        )  # fmt: skip
        won = append(site, mlflow, entry)
        if won.digest == entry.digest:
            return won


def _after(before: Aliases, alias: str, to: int) -> Aliases:
    """The aliases after a move: whoever was champion is `previous`, and a champion is no challenger."""
    after = before | {alias: to}
    if alias == CHAMPION:
        if before.get(CHAMPION) not in (None, to):
            after[PREVIOUS] = before[CHAMPION]
        after = {one: number for one, number in after.items() if one in (CHAMPION, PREVIOUS) or number != to}
    return after


def _moves_since(mlflow: MlflowClient, name: str, seen: Link | None) -> list[Link]:
    """The moves in the chain behind the head that a decision was made on."""
    after = 0 if seen is None else seen.number
    return [link for link in recent(mlflow, name) if link.entry.kind in MOVES and link.number > after]


def _lost(name: str, first: Link, alias: str, to: int) -> LostError:
    """Name the move that came first."""
    entry = first.entry
    return LostError(
        f"version {to} of {name!r} did not become {alias!r}: {entry.actor} {DID.get(entry.kind, entry.kind)} version "
        f"{entry.to} at the same moment (entry {entry.sequence}, {entry.time}); look at `kdq history {name}`, then "
        "promote again if you still want to"
    )
