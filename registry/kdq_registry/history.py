"""The history of a model: the entries of its chain of promotions, and what is wrong with the chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdq_core.frozen import Frozen
from kdq_registry.chain import everything, on_chain
from kdq_registry.entries import ENTRY_TAG, NOTHING, Entry, Link, wrong_with
from kdq_registry.environment import client, mlflow_errors
from kdq_registry.listing import repaired
from kdq_registry.versions import CHAIN_SUFFIX, model_named, nothing_yet, unknown_model

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site


def history(site: Site, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Give the entries of the chain, oldest first, and the attempts that lost against one of them.

    Returns:
        A row for each entry: its fields, its `digest`, and `lost_to`, the sequence of the entry that was first, or
            `None`. And one sentence for each alias that KDQ repaired.

    Raises:
        RecipeError: there is no such model.
    """
    if nothing_yet(site):
        raise unknown_model(name, [])
    with mlflow_errors(site):
        mlflow = client(site)
        model_named(mlflow, name)
        told = repaired(site, mlflow, name)
        rows = _readable(name, everything(mlflow, name))
    chain = {link.digest: link.entry.sequence for link in on_chain(name, rows)}
    entries = [Entry.model_validate_json(row.tags[ENTRY_TAG]) for row in rows]
    first = {entry.previous: entry.sequence for entry in entries if entry.digest in chain}
    return [
        entry.model_dump(mode="json")
        | {"digest": entry.digest, "lost_to": None if entry.digest in chain else first.get(entry.previous, 0)}
        for entry in entries
    ], told


class Verified(Frozen):
    """What `verify_history` found.

    Attributes:
        head: digest of the last entry.
        wrong: one sentence for each thing that is wrong.
        signed: the entries that a public key signed, by their sequence; the signatures of all of them hold.
        unsigned: the entries that nobody signed.
    """

    head: str
    wrong: tuple[str, ...] = ()
    signed: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    unsigned: tuple[int, ...] = ()


def verify_history(site: Site, name: str, head: str | None = None) -> Verified:
    """Check every entry of a chain: digest, signature, order, nothing deleted, aliases as the last entry says.

    Args:
        site: where MLflow is.
        name: the model.
        head: digest of an entry (or its first 12 digits or more) that the chain must have; it proves that nobody cut
            the chain off, or wrote it anew.

    Raises:
        RecipeError: there is no such model.
    """
    if nothing_yet(site):
        raise unknown_model(name, [])
    with mlflow_errors(site):
        mlflow = client(site)
        model = model_named(mlflow, name)
        rows = everything(mlflow, name)
    told = list(_of_rows(name, rows))
    links = on_chain(name, _readable(name, rows))
    told += _of_order(name, _readable(name, rows), links)
    if head and not any(link.digest.startswith(head) for link in links):
        told.append(f"the chain has no entry {head!r}: it was cut off, or written anew")
    if links:
        right = links[-1].entry.aliases
        told += [
            f"the alias {alias!r} stands at {model.aliases.get(alias, 'nothing')}, and the last entry says "
            f"{right.get(alias, 'nothing')}"
            for alias in sorted({"champion", "challenger", "previous"})
            if str(model.aliases.get(alias, "")) != str(right.get(alias, ""))
        ]
    signed: dict[str, tuple[int, ...]] = {}
    for link in links:
        signed[link.entry.signer] = (*signed.get(link.entry.signer, ()), link.entry.sequence)
    unsigned = signed.pop("", ())
    return Verified(head=links[-1].digest if links else NOTHING, wrong=tuple(told), signed=signed, unsigned=unsigned)


def _readable(name: str, rows: Sequence[Any]) -> list[Any]:
    return [row for row in rows if not wrong_with(name, row.tags)]


def _of_rows(name: str, rows: Sequence[Any]) -> list[str]:
    """What is wrong with single versions."""
    where = name + CHAIN_SUFFIX
    numbers = {int(row.version) for row in rows}
    gone = sorted(set(range(1, max(numbers, default=0) + 1)) - numbers)
    told = [f"version {number} of {where!r} was deleted" for number in gone]
    for row in rows:
        wrong = wrong_with(name, row.tags)
        if wrong:
            told.append(f"version {row.version} of {where!r} {wrong}")
    return told


def _of_order(name: str, rows: Sequence[Any], links: Sequence[Link]) -> list[str]:
    """Entries that follow one that is missing, and wrong numbers on the chain."""
    entries = [Entry.model_validate_json(row.tags[ENTRY_TAG]) for row in rows]
    there = {NOTHING, *(entry.digest for entry in entries)}
    told = [
        f"entry {entry.sequence} of {name!r} follows {entry.previous[:12]}, which is missing"
        for entry in entries
        if entry.previous not in there
    ]
    wrong = [link.entry.sequence for place, link in enumerate(links, start=1) if link.entry.sequence != place]
    return told + [f"entry {sequence} of {name!r} has a wrong number" for sequence in wrong]
