"""What KDQ keeps of each run below `KDQ_HOME/runs/<run>/`: a record and the page, which can be made anew from it.

The record holds facts and keys. Results stay in the store alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from kdq_core.errors import RecipeError, StoreError, did_you_mean
from kdq_core.frozen import Frozen
from kdq_core.plan.plan import Plan
from kdq_core.plan.view import RunView
from kdq_core.recipe.spec import Site
from kdq_core.store.store import Store
from kdq_core.store.store import explained as explaining
from kdq_core.work.effects import Explained
from kdq_flows.facts.result import RunResult

RECORD, PAGE, EXPLAINED = "run.json", "report.html", "explain.json"
VERSION = re.compile(r"[^/@]+(/[1-9]\d*|@[^/@]+)")
"""A registered version: `NAME/NUMBER` or `NAME@ALIAS`."""
SHOWN = 8
"""The most runs that an error names."""


class RunRecord(Frozen):
    """A run as it is kept: its facts, and its plan without the parts of the keys, which the store has."""

    result: RunResult
    plan: Plan
    recipe: str = Field(description="the recipe as YAML, as it was asked for")
    began: float = Field(description="seconds since 1970")

    def view(self, store: Store) -> RunView:
        """The run with those of its entries that the store still has."""
        entries = {}
        for stage in self.result.stages:
            with contextlib.suppress(StoreError):  # a damaged entry: its sections are left out
                entry = store.lookup(stage.key) if stage.state not in ("failed", "interrupted") else None
                if entry is not None:
                    entries[stage.name] = entry
        return RunView(self.plan, entries)


def folder(site: Site, run: str) -> Path:
    """The folder of a run."""
    return site.home / "runs" / run


def explained(site: Site, run: str) -> Explained | None:
    """What `kdq explain` found in a run; `None` if nobody asked, or another version of KDQ wrote it."""
    try:
        return Explained.model_validate_json((folder(site, run) / EXPLAINED).read_bytes())
    except (OSError, ValidationError):
        return None


def bare(plan: Plan) -> Plan:
    """The plan without the parts of keys, and without addresses, which may hold a password."""
    site = plan.site.model_copy(update={"tracking_uri": None, "prefect_api": None})
    nodes = tuple(node.model_copy(update={"parts": {}}) for node in plan.nodes)
    return plan.model_copy(update={"site": site, "nodes": nodes})


def record_of(facts: RunResult, plan: Plan, recipe: str, began: float) -> RunRecord:
    """The record of a run with these facts, which names the page that it will have."""
    page = folder(plan.site, facts.run) / PAGE
    return RunRecord(result=facts.model_copy(update={"report": str(page)}), plan=bare(plan), recipe=recipe, began=began)


def keep(site: Site, record: RunRecord) -> None:
    """Write the record of a run, whole or not at all.

    Raises:
        StoreError: the home cannot be written.
    """
    _put(site, record.result.run, RECORD, record.model_dump_json())


def keep_page(site: Site, run: str, html: str) -> Path:
    """Write the page of a run, whole or not at all; gives its path.

    Raises:
        StoreError: the home cannot be written.
    """
    return _put(site, run, PAGE, html)


def _put(site: Site, run: str, name: str, text: str) -> Path:
    place = folder(site, run)
    with explaining(place, "write the record of the run to"):
        place.mkdir(parents=True, exist_ok=True)
        write(place / name, text)
    return place / name


def write(path: Path, text: str) -> None:
    """Replace a file in one step.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def records(site: Site) -> Iterator[RunRecord]:
    """The kept runs, newest first; unreadable ones are skipped."""
    files = [(path.stat().st_mtime_ns, path) for path in (site.home / "runs").glob(f"*/{RECORD}")]
    for _, path in sorted(files, reverse=True):
        with contextlib.suppress(OSError, ValidationError):
            yield RunRecord.model_validate_json(path.read_bytes())


def find(site: Site, asked: str) -> RunRecord:
    """Find the run that a user means.

    Args:
        site: its home has the runs.
        asked: the name of a run; a recipe's file or its name, for the recipe's last run; or a registered version, as
            `NAME/NUMBER` or `NAME@ALIAS`, for the last run that made its file.

    Raises:
        RecipeError: there is no such run or version, or it is of another version of KDQ.
    """
    if VERSION.fullmatch(asked) and not Path(asked).exists():
        return _of_version(site, asked)
    path = folder(site, asked) / RECORD
    if "/" not in asked and path.is_file():
        try:
            return RunRecord.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise RecipeError(
                f"the record of run {asked!r} cannot be read: {error.errors()[0]['msg']}; another version of KDQ wrote "
                "it. Run the recipe again"
            ) from None
    name = recipe_name(asked)
    kept = list(records(site))
    found = next((record for record in kept if record.plan.recipe.name == name), None)
    if found is not None:
        return found
    raise unknown(asked, [record.result.run for record in kept], site)


def same(site: Site, keys: Iterable[str]) -> Path | None:
    """The page of the newest finished run with the same keys, or `None`."""
    keys = list(keys)
    for record in records(site):
        finished = record.result.status in ("completed", "no-news")
        if finished and [stage.key for stage in record.result.stages] == keys:
            page = folder(site, record.result.run) / PAGE
            return page if page.is_file() else None
    return None


def _of_version(site: Site, version: str) -> RunRecord:
    from kdq_registry.pulling import sha256_of_version

    sha256 = sha256_of_version(site, version)
    for record in records(site):
        if record.result.artifact is not None and record.result.artifact.sha256 == sha256:
            return record
    raise RecipeError(
        f"no run in {str(site.home)!r} made the file of version {version!r} (sha256 {sha256[:12]}); set KDQ_HOME to "
        "the home of the run that registered it"
    )


def recipe_name(asked: str) -> str:
    """The recipe's name, read from its file if `asked` is one."""
    if not Path(asked).is_file():
        return asked
    from kdq_core.reading.recipe_file import read_document

    document = read_document(Path(asked)).value
    return str(document.get("name", "")) if isinstance(document, dict) else ""


def unknown(asked: str, runs: list[str], site: Site) -> RecipeError:
    """The error for a run that a home, which has `runs`, does not have."""
    if not runs:
        return RecipeError(f"no run named {asked!r}: {str(site.home)!r} has no run yet; make one with `kdq run FILE`")
    more = f" and {len(runs) - SHOWN} older" if len(runs) > SHOWN else ""
    near, last = did_you_mean(asked, runs) or ".", ", ".join(runs[:SHOWN])
    return RecipeError(
        f"no run named {asked!r}{near} The last runs: {last}{more}; name one, or a recipe's file for its last run"
    )
