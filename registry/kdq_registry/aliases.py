"""The aliases of a model: a cache of its chain's head, which whoever reads it repairs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdq_registry.chain import append, recent
from kdq_registry.entries import MOVES, SETTLED_TAG, Aliases, Kind, Link, new_entry
from kdq_registry.patience import patient
from kdq_registry.versions import CHAIN_SUFFIX, direct, model_named

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
ALIASES = (CHALLENGER, CHAMPION, PREVIOUS)
"""The aliases that KDQ moves; others are the user's own."""
IN_FLIGHT_SECONDS = 10
"""An alias behind an entry this young is left to the writer of the entry."""
LOOK_AGAIN_SECONDS = 0.5
"""A process that was late may set an alias back for so long, until it has looked at the head again."""


@patient
def read_aliases(mlflow: MlflowClient, name: str) -> Aliases:
    """The aliases that MLflow has now, those of KDQ only; one by one, as a model comes with all its versions."""
    from mlflow.exceptions import MlflowException

    found = {}
    for alias in ALIASES:
        try:
            found[alias] = int(mlflow.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                model_named(mlflow, name)  # says which models there are
            elif error.error_code != "INVALID_PARAMETER_VALUE":  # no such alias
                raise
    return found


def state_of(mlflow: MlflowClient, name: str, link: Link | None) -> Aliases:
    """The aliases by the chain; a model without a chain has those of MLflow."""
    return dict(link.entry.aliases) if link else read_aliases(mlflow, name)


@patient
def settle(mlflow: MlflowClient, name: str) -> Link | None:
    """Set the aliases to what the head of the chain says, until the head stays the same; gives the head.

    Raises:
        StageError: the chain is broken.
    """
    while True:
        links = recent(mlflow, name)
        if not links:
            return None
        _set(mlflow, name, links[-1].entry.aliases)
        again = recent(mlflow, name)
        if again[-1].digest == links[-1].digest:
            for link in again:
                if link.entry.kind in MOVES and not link.settled:
                    direct(mlflow).set_model_version_tag(name + CHAIN_SUFFIX, str(link.number), SETTLED_TAG, "true")
            return links[-1]


def repair(site: Site, mlflow: MlflowClient, name: str) -> list[str]:
    """Bring aliases back to the chain's head, write that into the chain, and tell it.

    An alias that stands where a killed promotion left it is completed (`repair`). Any other difference was made outside
    of KDQ (`outside`). An alias that another process is just about to set is left alone.

    Returns:
        One sentence for each alias.

    Raises:
        StageError: the chain is broken.
    """
    links, wrong = _differing(mlflow, name)
    if wrong and (_kind(links, *wrong[0]) == "outside" or not _old(links)):
        time.sleep(LOOK_AGAIN_SECONDS)
        links, wrong = _differing(mlflow, name)
    told, gone = [], []
    for alias, found in wrong:
        kind, right = _kind(links, alias, found), links[-1].entry.aliases.get(alias)
        if right is not None and deleted(mlflow, name, right):
            gone.append(f"version {right} of {name!r}, which was {alias!r}, was deleted in MLflow; promote another one")
        elif kind != "repair" or _old(links):
            told.append(_written(site, mlflow, name, links[-1], kind, alias, found))
    if told:
        settle(mlflow, name)
    return told + gone


def deleted(mlflow: MlflowClient, name: str, number: int) -> bool:
    """Say whether somebody deleted a version, which drops its aliases."""
    from mlflow.exceptions import MlflowException

    try:
        mlflow.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True
    return False


def _written(site: Site, mlflow: MlflowClient, name: str, link: Link, kind: Kind, alias: str, found: int | None) -> str:
    """Append the entry behind whatever is the head by now; another process may have written the same already."""
    right = link.entry.aliases.get(alias)
    stood = f"version {found}" if found else "no version"
    stands = f"version {right}" if right else "no version"
    while link.entry.aliases.get(alias) == right:
        entry = new_entry(
            site, name, link, kind=kind, alias=alias, aliases=link.entry.aliases, came_from=right, to=found
        )
        won = append(site, mlflow, entry)
        if won.digest == entry.digest or (won.entry.kind, won.entry.alias, won.entry.to) == (kind, alias, found):
            break
        link = won
    if kind == "repair":
        return f"a promotion of {name!r} did not finish: {alias!r} stood at {stood}; it is {stands} now"
    return (
        f"{alias!r} of {name!r} was moved outside of KDQ, to {stood}; the chain of promotions says {stands}, so KDQ "
        "moved it back"
    )


def _differing(mlflow: MlflowClient, name: str) -> tuple[list[Link], list[tuple[str, int | None]]]:
    """The newest links, and each alias that is not what the head says, with the version it has."""
    links = recent(mlflow, name)
    if not links:
        return [], []
    right, there = links[-1].entry.aliases, read_aliases(mlflow, name)
    wrong = [(alias, there.get(alias)) for alias in ALIASES if there.get(alias) != right.get(alias)]
    return links, wrong


def _kind(links: Sequence[Link], alias: str, found: int | None) -> Kind:
    """`repair` if a move that nobody saw completed explains where the alias stands."""
    for before, link in zip([None, *links], links, strict=False):
        if link.entry.kind in MOVES and not link.settled:
            earlier = before.entry.aliases.get(alias) if before else link.entry.source
            if found in (earlier, link.entry.aliases.get(alias)):
                return "repair"
    return "outside"


def _old(links: Sequence[Link]) -> bool:
    moves = [link for link in links if link.entry.kind in MOVES and not link.settled]
    return not moves or time.time() - moves[-1].created / 1000 > IN_FLIGHT_SECONDS


def _set(mlflow: MlflowClient, name: str, right: Aliases) -> None:
    from mlflow.exceptions import MlflowException

    there = read_aliases(mlflow, name)
    for alias in ALIASES:
        if there.get(alias) == right.get(alias):
            continue
        if alias not in right:
            direct(mlflow).delete_registered_model_alias(name, alias)
            continue
        try:
            direct(mlflow).set_registered_model_alias(name, alias, str(right[alias]))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the version was deleted
                raise
