"""The runs of a home: `kdq runs`, and which one a user means."""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Site
from kdq_flows.facts.result import RunResult
from kdq_flows.facts.state import STATE, RunState, states
from kdq_flows.report.kept import RECORD, RunRecord, recipe_name, unknown

ORDER = ("ran", "cached", "shared", "failed", "interrupted")


def runs_of(site: Site) -> list[RunState]:
    """All runs of a home, newest first; the branches of a study are in the run of the study."""
    found = {state.run: state for state in states(site)}
    for state in _older(site, found):
        found[state.run] = state
    return sorted(found.values(), key=lambda one: one.began, reverse=True)


def find(site: Site, asked: str) -> RunState:
    """Find the run that a user means: by its name, or by a recipe's name or file, which means its last run.

    Raises:
        RecipeError: there is none.
    """
    runs = runs_of(site)
    named = next((one for one in runs if one.run == asked), None)
    recipe = recipe_name(asked)
    found = named or next((one for one in runs if one.recipe == recipe), None)
    if found is None:
        raise unknown(asked, [one.run for one in runs], site)
    return found


def row_of(state: RunState, now: float | None = None) -> dict[str, Any]:
    """A run as JSON has it."""
    until = state.ended if state.seen != "running" else (now or time.time())
    counts = Counter(one.state for one in state.stages)
    version = state.version
    return {
        "run": state.run,
        "recipe": state.recipe,
        "status": state.seen,
        "when": datetime.datetime.fromtimestamp(state.began, datetime.UTC).isoformat(timespec="seconds"),
        "seconds": None if until is None else round(until - state.began, 1),
        "stages": {name: counts[name] for name in ORDER if counts[name]},
        "branches": state.branches,
        "metric": state.model_dump(mode="json")["metric"],
        "version": None if version is None else version.model_dump(),
        "error": state.error,
    }


def _older(site: Site, known: dict[str, RunState]) -> Iterator[RunState]:
    """Runs that an older KDQ kept, which wrote no state."""
    names = {*known}
    for file in sorted((site.home / "studies").glob("*.json")):
        names.add(file.stem)
        if file.stem not in known:
            with contextlib.suppress(OSError, ValidationError):
                result, ended = RunResult.model_validate_json(file.read_bytes()), file.stat().st_mtime
                recipe = re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", file.stem)
                yield _of(result, recipe, ended - result.seconds, site.device)
    for record in sorted((site.home / "runs").glob(f"*/{RECORD}")):
        name = record.parent.name
        if (record.parent / STATE).exists() or any(name[: dot.start()] in names for dot in re.finditer(r"\.", name)):
            continue
        with contextlib.suppress(OSError, ValidationError):
            kept = RunRecord.model_validate_json(record.read_bytes())
            yield _of(kept.result, kept.plan.recipe.name, kept.began, kept.plan.site.device)


def _of(result: RunResult, recipe: str, began: float, device: str) -> RunState:
    state = RunState(run=result.run, recipe=recipe, owner="", kdq="", device=device, began=began)
    return state.after(result, began + result.seconds)


def not_running(state: RunState) -> RecipeError:
    """The error for a command that needs a running run."""
    how = {
        "killed": "its process is gone; `kdq reconcile` closes what it left open in Prefect and MLflow",
        "no-news": "it ended, and every stage was cached",
    }.get(state.seen, f"it is {state.seen} already")
    return RecipeError(f"run {state.run!r} is not running: {how}. `kdq status` lists the runs that are running")
