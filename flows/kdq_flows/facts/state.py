"""The state of a run during and after it, in `KDQ_HOME/runs/<run>/state.json`, so that other processes see it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from kdq_core.frozen import Frozen
from kdq_core.recipe.spec import Site
from kdq_core.store.family import Measured
from kdq_flows.facts.parts import VersionFacts
from kdq_flows.facts.result import RunResult
from kdq_flows.owner import is_alive

STATE = "state.json"
GONE = "killed"
"""The status of a run whose process died before it could say how the run ended."""


class StageState(Frozen):
    """A stage that has ended."""

    name: str
    state: str = Field(description="ran, cached, shared, failed or interrupted")
    seconds: float
    key: str = Field(default="", description="of its store entry, if it has one")


class StageNow(Frozen):
    """A stage that runs."""

    name: str
    since: float = Field(description="seconds since 1970")
    done: int = 0
    total: int = 0
    note: str = Field(default="", description="such as the loss")


class RunState(Frozen):
    """A run as other processes see it."""

    run: str
    recipe: str
    owner: str = Field(description="tag of the process that drives the run")
    kdq: str = Field(description="version of KDQ")
    device: str
    began: float = Field(description="seconds since 1970")
    ended: float | None = None
    status: str = Field(default="running", description="running, or as the result of the run has it")
    now: tuple[StageNow, ...] = ()
    stages: tuple[StageState, ...] = ()
    branches: int = Field(default=0, description="of a study")
    metric: dict[str, Measured] = Field(default={}, description="the main metric of the int8 file by its name")
    version: VersionFacts | None = None
    error: str | None = None

    @property
    def seen(self) -> str:
        """The status; `killed` if the process is gone that drove the run."""
        return self.status if self.status != "running" or is_alive(self.owner) else GONE

    def after(self, result: RunResult, ended: float) -> RunState:
        """The state of the run once it has ended with these facts."""
        stages = tuple(StageState(**one.model_dump()) for one in result.stages)
        return self.model_copy(
            update={
                "ended": ended, "status": result.status, "now": (), "stages": stages, "error": result.error,
                "branches": len(result.branches), "version": result.version,
                "metric": main_of(result.models.get("int8", {})),
            }
        )  # fmt: skip


def main_of(values: dict[str, float]) -> dict[str, float]:
    """The main one of the metrics of a file: top-1, or else the first that is compared with float."""
    paired = (name for name in values if f"{name}_difference" in values)
    name = "top1" if "top1" in values else next(paired, None)
    return {} if name is None else {name: values[name]}


def file_of(site: Site, run: str) -> Path:
    """The file of a run's state."""
    return site.home / "runs" / run / STATE


def states(site: Site) -> Iterator[RunState]:
    """The states of all runs of a home, in no order; unreadable ones are left out."""
    for file in (site.home / "runs").glob(f"*/{STATE}"):
        with contextlib.suppress(OSError, ValidationError):
            yield RunState.model_validate_json(file.read_bytes())


def running(site: Site) -> list[RunState]:
    """The runs that are running now, oldest first."""
    return sorted((one for one in states(site) if one.seen == "running"), key=lambda one: one.began)
