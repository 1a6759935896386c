"""The store of a home seen from outside: `kdq cache`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdq_core.errors import KdqError, RecipeError
from kdq_core.recipe.spec import Site
from kdq_core.store import open_store
from kdq_core.store.family import resolved
from kdq_core.store.listed import Listed
from kdq_core.store.listing import entries, lineage
from kdq_core.store.records import ModelVersion
from kdq_core.store.remote import RemoteStore
from kdq_flows.facts.state import RunState, running
from kdq_flows.seeing.runs import runs_of
from kdq_flows.seeing.shared_store import cache_bytes, tidied, unused_for

RECENT = 600.0
"""Seconds for which an entry stays in any case: commands beside `kdq run` also read entries, and leave no record."""
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Collected:
    """What `kdq cache gc` drops, and what stays.

    Attributes:
        dropped: the entries that go, least recently used first.
        kept: bytes that stay.
        held: why entries stay that were old enough, with their number.
        notes: remarks for the user.
    """

    dropped: tuple[Listed, ...]
    kept: int
    held: Mapping[str, int]
    notes: tuple[str, ...] = ()


def listed(site: Site) -> list[dict[str, Any]]:
    """The entries of the store, most recently used first."""
    now, users = time.time(), last_users(runs_of(site))
    rows = []
    for one in sorted(entries(open_store(site)), key=lambda one: one.used, reverse=True):
        user = users.get(one.key)
        rows.append({
            "stage": one.stage,
            "recipe": user and user.recipe,
            "run": user and user.run,
            "bytes": one.bytes,
            "age": round(now - one.made),
            "unused": round(now - one.used),
            "key": one.key,
        })  # fmt: skip
    return rows


def last_users(runs: Iterable[RunState]) -> dict[str, RunState]:
    """The newest run that used each entry, by its key; `runs` are newest first."""
    found: dict[str, RunState] = {}
    for run in runs:
        for stage in run.stages:
            found.setdefault(stage.key, run)
    return found


def usage(site: Site) -> list[dict[str, Any]]:
    """Disk use by stage, largest first; then what unfinished stages keep, and the whole."""
    by_stage: dict[str, list[int]] = {}
    for one in entries(open_store(site)):
        by_stage.setdefault(one.stage, []).append(one.bytes)
    rows: list[dict[str, Any]] = [
        {"stage": stage, "entries": len(sizes), "bytes": sum(sizes)} for stage, sizes in by_stage.items()
    ]
    rows.sort(key=lambda row: -row["bytes"])
    unfinished = [
        path.lstat().st_size
        for folder in (site.store / "drafts", site.home / "scratch")
        for path in folder.rglob("*")
        if path.is_file()
    ]
    rows.append({"stage": "(unfinished stages)", "entries": None, "bytes": sum(unfinished)})
    if site.store_address is not None:
        rows.append({"stage": "(read cache)", "entries": None, "bytes": cache_bytes(site)})
    whole = {"entries": sum(map(len, by_stage.values())), "bytes": sum(row["bytes"] for row in rows)}
    return [*rows, {"stage": "(all)", **whole}]


def damaged(site: Site, *, delete: bool) -> Iterator[tuple[Listed, str | None]]:
    """Hash every file again; gives each entry with what is damaged. With `delete`, drop damaged ones."""
    store = open_store(site)
    for one in entries(store):
        found = store.damage(one.key)
        if found and delete:
            store.discard(one.key)
        yield one, found


def collect(
    site: Site, *, older: float | None = None, most: float | None = None, delete: bool = False, now: float | None = None
) -> Collected:
    """Find, and with `delete` drop, the entries that may go, least recently used first.

    Args:
        site: its home has the store.
        older: only entries that nobody used for so many seconds; by default an entry of any age.
        most: only as many as make the store no larger than so many bytes; by default all that are old enough.
        delete: drop them.
        now: seconds since 1970.

    Raises:
        RecipeError: neither limit is given.
        StoreError: the store cannot be written.
    """
    if older is None and most is None:
        raise RecipeError("say what may go: --older 30d (unused for so long), --max-size 20GB, or both")
    now, store = now or time.time(), open_store(site)
    found = sorted(entries(store), key=lambda one: one.used)
    needed, notes = _needed(site, found)
    busy = min((run.began for run in running(site)), default=now)
    recent = unused_for(site, RECENT)
    left, dropped, held = sum(one.bytes for one in found), list[Listed](), dict[str, int]()
    for one in found:
        if (older is not None and now - one.used < older) or (most is not None and left <= most):
            break
        why = (
            "a registered version was made from them" if one.key in needed
            else "a running run uses them" if one.used >= busy
            else f"they were used in the last {_words(recent)}" if now - one.used < recent
            else None
        )  # fmt: skip
        if why is None and delete and not store.discard_unused(one.key, one.used):
            why = "another process took them meanwhile"
        if why is not None:
            held[why] = held.get(why, 0) + 1
            continue
        dropped.append(one)
        left -= one.bytes
    if most is not None and left > most:
        notes.append(f"the store would still have {left:,} bytes, more than the {most:,.0f} that were asked for")
    if isinstance(store, RemoteStore):
        notes += tidied(store, site, older, RECENT, delete=delete)
    return Collected(tuple(dropped), left, held, tuple(notes))


def _words(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:.0f} h"


def _needed(site: Site, found: list[Listed]) -> tuple[set[str], list[str]]:
    """Keys of all that registered versions were made from; if the registry does not answer, all count as registered."""
    from kdq_registry.registering import version_exists

    notes, tips = list[str](), list[Listed]()
    for one in found:
        if one.manifest is None or one.manifest.record.type != "version":
            continue
        try:
            record = resolved(one.manifest.record)
            there = not isinstance(record, ModelVersion) or version_exists(record, site)
        except (KdqError, ValueError) as error:
            notes.append(f"the registry could not be asked ({error}); KDQ keeps what its versions were made from")
            there = True
        if there:
            tips.append(one)
    return lineage(tips, found), list(dict.fromkeys(notes))


def seconds_of(text: str) -> float:
    """A duration such as `30d`, `12h` or `2w` in seconds.

    Raises:
        RecipeError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    if found is None:
        raise RecipeError(f"--older is {text!r}; write a number with s, m, h, d or w, such as 30d")
    return float(found[1]) * SECONDS[found[2]]


def bytes_of(text: str) -> float:
    """A size such as `20GB`, `1.5 TB` or `500MiB` in bytes.

    Raises:
        RecipeError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)", text.strip().lower())
    if found is None:
        raise RecipeError(f"--max-size is {text!r}; write a number with B, kB, MB, GB or TB, such as 20GB")
    return float(found[1]) * (1024 if found[3] else 1000) ** ("kmgt".index(found[2]) + 1 if found[2] else 0)
