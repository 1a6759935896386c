"""Keeps the diary of a run: its state for other processes, and a log of what the user is told.

It is an observer around another one. A diary that cannot be written costs a message, and never the run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from kdq_core.errors import KdqError
from kdq_core.recipe.spec import Site
from kdq_core.store.store import explained
from kdq_flows.facts.parts import StageFacts
from kdq_flows.facts.result import RunResult
from kdq_flows.facts.state import RunState, StageNow, StageState, file_of
from kdq_flows.observer import Observer, Silent
from kdq_flows.owner import owner_tag
from kdq_flows.report.kept import write
from kdq_flows.run.logs import claimed_name
from kdq_flows.run.pace import Pace

LOG = "run.log"
STATE_SECONDS = 1.0
"""KDQ writes progress to the state no more often."""


class Diary:
    """Tells another observer all that it hears, and writes it down.

    Attributes:
        run: the name of the run.
        facts: gives the facts of the run so far; set it once the run can give them.
        ended: gives the stages that have ended, with their keys; likewise.
    """

    def __init__(self, site: Site, recipe: str, observer: Observer | None, run: str | None = None) -> None:
        """Begin no diary yet: `with` does.

        Args:
            site: its home takes it.
            recipe: name of the recipe.
            observer: who hears of the run besides.
            run: name of the run; by default a new one that no other run of the home has.

        Raises:
            StoreError: the home cannot be written.
        """
        self._site, self._observer = site, observer or Silent()
        self.run = run or claimed_name(recipe, site)
        self.facts: Callable[[], RunResult] | None = None
        self.ended: Callable[[], Iterable[StageFacts]] = tuple
        self._file = file_of(site, self.run)
        self._log = site.home / "logs" / self.run / LOG
        self._lock, self._told = threading.Lock(), False
        self._now: dict[str, StageNow] = {}
        self._paces: dict[str, Pace] = {}
        self._written = 0.0
        self._state = RunState(
            run=self.run, recipe=recipe, owner=owner_tag(), kdq=importlib.metadata.version("kdq"), device=site.device,
            began=time.time(),
        )  # fmt: skip

    def __enter__(self) -> Diary:
        with self._lock:
            self._write()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Write how the run ended; a wrong request, of which nothing ran, leaves no state."""
        if self.facts is None or (isinstance(error, KdqError) and error.exit_code == 2):
            self._forget()
            return
        result: RunResult | None = None
        try:
            result = self.facts()
        except Exception as broken:
            kind, error = kind or type(broken), error or broken
        with self._lock:
            self._now.clear()
            ended = self._state.model_copy(update={"ended": time.time()})
            state = ended if result is None else ended.after(result, time.time())
            if isinstance(error, KeyboardInterrupt):
                state = state.model_copy(update={"status": "interrupted"})
            elif kind is not None:
                state = state.model_copy(update={"status": "failed", "error": str(error) or kind.__name__})
            self._state = state
            why = f": {state.error}" if state.error else ""
            self._line(f"the run {state.status if state.status != 'no-news' else 'had no news'}{why}")
            self._write()

    def stage_started(self, stage: str) -> None:
        """Note that the stage runs."""
        self._observer.stage_started(stage)
        with self._lock:
            self._now[stage] = StageNow(name=stage, since=time.time())
            self._paces[stage] = Pace(time.monotonic())
            self._line(f"{stage} started")
            self._write()

    def progress(self, event: dict[str, Any]) -> None:
        """Note how far the stage is."""
        self._observer.progress(event)
        with self._lock:
            stage = self._now.get(event.get("stage", ""))
            if stage is None:
                return
            told: dict[str, Any] = {name: event[name] for name in ("done", "total", "note") if name in event}
            stage = self._now[stage.name] = stage.model_copy(update=told)
            pace, now = self._paces[stage.name], time.monotonic()
            pace.at(stage.done, stage.total, stage.note, now)
            if pace.due(now):
                self._line(f"{stage.name} {pace.line(now).lstrip()}")
            if time.time() - self._written >= STATE_SECONDS:
                self._write()

    def stage_ended(self, stage: str, state: str, seconds: float) -> None:
        """Note how the stage ended."""
        self._observer.stage_ended(stage, state, seconds)
        with self._lock:
            self._now.pop(stage, None)
            ended = (*self._state.stages, StageState(name=stage, state=state, seconds=seconds))
            self._state = self._state.model_copy(update={"stages": ended})
            self._line(f"{stage} {state} in {seconds:.1f} s")
            self._write()

    def message(self, text: str) -> None:
        """Note the text."""
        self._observer.message(text)
        with self._lock:
            self._line(text)

    def _write(self) -> None:
        self._written = time.time()
        keys = {one.name: one.key for one in list(self.ended())}
        stages = tuple(one.model_copy(update={"key": keys.get(one.name, one.key)}) for one in self._state.stages)
        self._state = self._state.model_copy(update={"now": tuple(self._now.values()), "stages": stages})
        with self._careful():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write(self._file, self._state.model_dump_json())

    def _line(self, text: str) -> None:
        with self._careful():
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            self._file.unlink()
            self._file.parent.rmdir()

    @contextlib.contextmanager
    def _careful(self) -> Any:
        """Let the user know of the first failure to write, and go on."""
        try:
            with explained(self._file.parent, "write the state of the run to"):
                yield
        except KdqError as error:
            if not self._told:
                self._told = True
                self._observer.message(f"other commands cannot see this run: {error}")
