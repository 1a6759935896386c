"""The logs of a run: `kdq logs`."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kdq_core.errors import RecipeError, did_you_mean
from kdq_core.recipe.spec import Site
from kdq_flows.facts.state import RunState
from kdq_flows.run.diary import LOG

PLUMBING = frozenset({"prefect", "warm-worker"})
"""Logs that are shown only if they are asked for."""
POLL_SECONDS = 0.3


def logs_of(site: Site, run: str) -> dict[str, Path]:
    """The logs of a run by stage; `run` is what the user was told. Those of a study also have `stage@branch`."""
    folder = site.home / "logs"
    files = {path.stem: path for path in sorted((folder / run).glob("*.log"))}
    for path in sorted(folder.glob(f"{glob.escape(run)}.*/*.log")):
        branch = path.parent.name.removeprefix(f"{run}.")
        files[f"{path.stem}@{branch}"] = path
    first = Path(LOG).stem
    return {name: files[name] for name in sorted(files, key=lambda one: (one != first, files[one].stat().st_mtime))}


def asked_of(site: Site, run: str, stage: str | None) -> dict[str, Path]:
    """The logs to show: those with words in them, or that of one stage.

    Raises:
        RecipeError: the run has no log of that stage, or none at all.
    """
    found = logs_of(site, run)
    if not found:
        raise RecipeError(
            f"run {run!r} has no logs: {str(site.home / 'logs' / run)!r} is gone or empty; run its recipe again"
        )
    if stage is None:
        return {name: path for name, path in found.items() if name.partition("@")[0] not in PLUMBING}
    mine = {name: path for name, path in found.items() if stage in (name, name.partition("@")[0])}
    if not mine:
        near = did_you_mean(stage, found) or "."
        raise RecipeError(
            f"run {run!r} has no log of a stage {stage!r}{near} It has: {', '.join(found)}. A stage that was cached "
            "has its log with the run that computed it (`kdq cache ls`)"
        )
    return mine


def lines(
    site: Site, state: RunState, stage: str | None, *, follow: bool, again: Callable[[], RunState] | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Give the logs of a run in pieces: the name of a log, and what it says.

    Args:
        site: its home has the logs.
        state: the run.
        stage: the only log to give.
        follow: go on until the run has ended.
        again: reads the state anew.
        sleep: waits for news.

    Raises:
        RecipeError: see `asked_of`.
    """
    read: dict[Path, int] = {}
    files = asked_of(site, state.run, stage)
    while True:
        over = not follow or again is None or again().seen != "running"
        for name, path in files.items():
            with path.open("rb") as file:
                file.seek(read.get(path, 0))
                text = file.read()
            whole = text if over else text[: text.rfind(b"\n") + 1]  # a line that is being written waits
            read[path] = read.get(path, 0) + len(whole)
            if whole:
                yield name, whole.decode(errors="replace")
        if over:
            return
        sleep(POLL_SECONDS)
        files = asked_of(site, state.run, stage)
