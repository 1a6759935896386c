"""What the process that drives a run does with the events of a stage: it shows them, and tells MLflow and plug-ins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdq_core.plan.plan import Node
from kdq_core.store.family import Record
from kdq_flows.facts.tracking import RunTracking
from kdq_flows.observer import Observer
from kdq_flows.report.live import Live
from kdq_flows.run.lifecycle import Lifecycle


@dataclass(frozen=True)
class Ears:
    """Who hears of the stages of a run.

    Attributes:
        observer: hears of starts, progress and messages.
        tracking: gets the points of the curves, with their times.
        live: draws them.
        lifecycle: tells plug-ins.
    """

    observer: Observer
    tracking: RunTracking
    live: Live
    lifecycle: Lifecycle

    def hear(self, event: dict[str, Any]) -> None:
        """Take an event that needs no stage: a message, or progress."""
        if event["event"] == "message":
            self.observer.message(event["text"])
        elif event["event"] == "progress":
            self.observer.progress(event)


class Hearing:
    """One try of one stage; its events come as they happen, or afterwards with the answer.

    Attributes:
        shared: whether another run has computed the entry.
    """

    def __init__(self, ears: Ears, node: Node, key: str) -> None:
        self._ears, self._node, self._key = ears, node, key
        self._run: str | None = None
        self.shared = False

    def hear(self, event: dict[str, Any]) -> None:
        """Take an event.

        Raises:
            KdqError: MLflow refuses the run.
        """
        self._ears.tracking.check()
        what = event["event"]
        if what == "begun":
            self.begun(event["at"])
        elif what == "epoch" and self._run is not None:
            self._ears.tracking.epoch(self._run, event["record"], event["at"])
            self._ears.live.epoch(self._node.name, event["record"])
        elif what == "shared":
            self.shared = True
        elif what == "note":
            self._ears.observer.message(f"{self._node.name}: {event['text']}")
        else:
            self._ears.hear(event)

    def begun(self, at: float | None = None) -> None:
        """Say that the stage computes, since `at` (seconds since 1970) or now."""
        self._ears.observer.stage_started(self._node.name)
        self._ears.lifecycle.stage("kdq_stage_started", self._node.name, self._key)
        self._run = self._ears.tracking.stage_started(self._node, self._key, at)

    def failed(self, error: BaseException) -> None:
        """Close the stage's run with the error."""
        if self._run is not None:
            self._ears.tracking.stage_ended(self._run, error)

    def gave(self, record: Record) -> None:
        """Close the stage's run with what the stage gave."""
        if self._run is not None:
            self._ears.tracking.gave(self._run, record)
            self._ears.tracking.stage_ended(self._run)
