"""Tells plug-ins that watch runs what happens; one that raises is reported, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdq_core.plan.view import FinishedRun, RunView
from kdq_core.plugins.catalog import Catalog
from kdq_core.store.store import Entry
from kdq_flows.facts.result import RunResult
from kdq_flows.observer import Observer


class Lifecycle:
    """Calls the lifecycle hooks of one run."""

    def __init__(self, catalog: Catalog, observer: Observer, recipe: str) -> None:
        """Watch for the plug-ins of `catalog`; `observer` hears of one that raises."""
        self._catalog, self._observer, self._recipe = catalog, observer, recipe

    def stage(self, hook: str, stage: str, key: str, **facts: Any) -> None:
        """Call a hook about a stage, such as `kdq_stage_started`."""
        self._call(hook, recipe=self._recipe, stage=stage, key=key, **facts)

    def stage_finished(self, stage: str, entry: Entry, seconds: float) -> None:
        """Say that a stage has an entry."""
        files = {file.path: entry.file(file.path) for file in entry.manifest.files}
        key, digest = entry.manifest.key, entry.digest
        self.stage("kdq_stage_finished", stage, key, digest=digest, seconds=seconds, files=files)

    def finished(self, facts: Callable[[], RunResult], view: RunView) -> None:
        """Say that the run has ended; `facts` gives its facts."""
        try:
            result = facts()
        except Exception as error:
            self._observer.message(f"plug-ins that watch runs do not hear of the end of this one: {error}")
            return
        run = FinishedRun(
            name=result.run, recipe=self._recipe, status=result.status, seconds=result.seconds, error=result.error,
            verdict=result.verdict, view=view,
        )  # fmt: skip
        self._call("kdq_run_finished", run=run)

    def _call(self, hook: str, **facts: Any) -> None:
        for _plugin, _answers, reason in self._catalog.each(hook, **facts):
            if reason:
                self._observer.message(f"{reason}; the run goes on without it")
