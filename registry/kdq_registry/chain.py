"""The chain of promotions: one version of the model `NAME.promotions` an entry, appended by compare-and-set.

MLflow's only atomic act is to make a version, which gets a number of its own. So each entry is a version with the tag
`kdq.expected`, the digest of the entry that its writer saw last. Of the versions that expect the same entry the one
with the lowest number is on the chain; the writers of the others read that they lost.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kdq_core.errors import StageError
from kdq_registry.entries import (
    DIGEST_TAG,
    ENTRY_TAG,
    EXPECTED_TAG,
    NOTHING,
    SETTLED_TAG,
    Entry,
    Link,
    tags_of,
    wrong_with,
)
from kdq_registry.patience import SECONDS, busy, patient, wait
from kdq_registry.versions import CHAIN_SUFFIX as SUFFIX

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site

PAGE = 100
"""How many of the newest entries are read to find the head; more processes than that do not append at once."""


def recent(mlflow: MlflowClient, name: str) -> list[Link]:
    """The newest links of a model's chain, oldest first; the last one is the head.

    Raises:
        StageError: an entry was changed or deleted.
    """
    rows = _rows(mlflow, name, order="DESC", most=PAGE)
    links = [_link(name, row) for row in reversed(rows) if ENTRY_TAG in row.tags]
    if not links:
        return []
    found = [_first(mlflow, name, links, links[-1].entry.previous)]
    while (before := _named(links, found[0].entry.previous)) is not None:
        if _first(mlflow, name, links, before.entry.previous).digest != before.digest:
            raise _broken(name, found[0].number, "follows an entry that is not on the chain")
        found.insert(0, before)
    while after := [link for link in links if link.entry.previous == found[-1].digest]:
        found.append(after[0])
    _check_gaps(name, rows, found)
    return found


def head(mlflow: MlflowClient, name: str) -> Link | None:
    """The last link of a model's chain; `None` if it has none."""
    return next(iter(recent(mlflow, name)[-1:]), None)


def append(site: Site, mlflow: MlflowClient, entry: Entry) -> Link:
    """Append an entry, and return the link that stands behind `entry.previous` now: this one, or who was first.

    Raises:
        MlflowException: MLflow refused.
    """
    from mlflow.exceptions import MlflowException

    deadline = time.monotonic() + SECONDS
    while True:
        try:
            _create(mlflow, entry, tags_of(site, entry))
            break
        except MlflowException as error:
            if time.monotonic() > deadline or not busy(error):
                raise
        wait()
        if _search(mlflow, entry.model, DIGEST_TAG, entry.digest):
            break  # it was written before the error
    return _link(entry.model, _search(mlflow, entry.model, EXPECTED_TAG, entry.previous)[0])


def everything(mlflow: MlflowClient, name: str) -> list[Any]:
    """All versions of `NAME.promotions`, oldest first."""
    return _rows(mlflow, name, order="ASC", most=None)


def on_chain(name: str, rows: Iterable[Any]) -> list[Link]:
    """The links of the chain from its beginning, of rows oldest first that are not `wrong_with`."""
    links = [_link(name, row) for row in rows]
    first: dict[str, Link] = {}
    for link in links:
        first.setdefault(link.entry.previous, link)
    found: list[Link] = []
    while (after := first.get(found[-1].digest if found else NOTHING)) is not None:
        found.append(after)
    return found


def _first(mlflow: MlflowClient, name: str, links: Sequence[Link], expected: str) -> Link:
    """Who was first to expect an entry; asks MLflow only if that entry is older than `links`."""
    if expected == NOTHING or _named(links, expected) is None:
        if expected != NOTHING and not _search(mlflow, name, DIGEST_TAG, expected):
            number = next(link.number for link in links if link.entry.previous == expected)
            raise _broken(name, number, "follows an entry that is missing")
        return _link(name, _search(mlflow, name, EXPECTED_TAG, expected)[0])
    return next(link for link in links if link.entry.previous == expected)


def _check_gaps(name: str, rows: Sequence[Any], found: Sequence[Link]) -> None:
    """Refuse a deleted version between two links: it may have been the first to expect the older one."""
    there = {int(row.version) for row in rows}
    for older, newer in itertools.pairwise(found):
        missing = set(range(older.number + 1, newer.number)) - there
        if missing:
            raise _broken(name, min(missing), "was deleted")


def _named(links: Sequence[Link], digest: str) -> Link | None:
    return next((link for link in links if link.digest == digest), None)


def _link(name: str, row: Any) -> Link:
    wrong = wrong_with(name, row.tags)
    if wrong:
        raise _broken(name, int(row.version), wrong)
    entry = Entry.model_validate_json(row.tags[ENTRY_TAG])
    return Link(entry, int(row.version), int(row.creation_timestamp), SETTLED_TAG in row.tags)


def _broken(name: str, number: int, wrong: str) -> StageError:
    return StageError(
        f"the chain of promotions of model {name!r} is broken: version {number} of {name + SUFFIX!r} {wrong}; nothing "
        f"was moved. `kdq history {name} --verify` lists all that is wrong; restore the database from a backup"
    )


def _create(mlflow: MlflowClient, entry: Entry, tags: dict[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    model = entry.model + SUFFIX
    if entry.previous == NOTHING:
        try:
            mlflow.create_registered_model(model, description=f"KDQ's history of promotions of {entry.model!r}")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    # An entry has no files; a server takes only a source that is no path.
    mlflow.create_model_version(model, f"kdq://promotions/{entry.digest}", tags=tags, await_creation_for=0)


@patient
def _search(mlflow: MlflowClient, name: str, tag: str, value: str) -> list[Any]:
    return list(
        mlflow.search_model_versions(
            f"name = '{name}{SUFFIX}' and tags.`{tag}` = '{value}'", max_results=1, order_by=["version_number ASC"]
        )
    )


@patient
def _rows(mlflow: MlflowClient, name: str, *, order: str, most: int | None) -> list[Any]:
    found: list[Any] = []
    token: str | None = None
    while token != "" and (most is None or len(found) < most):
        page = mlflow.search_model_versions(
            f"name = '{name}{SUFFIX}'", max_results=most or 1000, order_by=[f"version_number {order}"], page_token=token
        )
        found += page
        token = page.token or ""
    return found
