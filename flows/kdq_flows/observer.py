"""Who watches a run: the command line, a log, or nobody."""

from __future__ import annotations

from typing import Any, Protocol


class Observer(Protocol):
    """Told what happens; called from several threads."""

    def stage_started(self, stage: str) -> None:
        """The stage is not cached and begins to run."""

    def progress(self, event: dict[str, Any]) -> None:
        """An event of a stage at work: `done` of `total` steps, with a short `note`."""

    def stage_ended(self, stage: str, state: str, seconds: float) -> None:
        """The stage is `ran`, `cached` or `failed`."""

    def message(self, text: str) -> None:
        """Something the user should read."""


class Silent:
    """Watches nothing."""

    def stage_started(self, stage: str) -> None:
        """Nothing to do."""

    def progress(self, event: dict[str, Any]) -> None:
        """Nothing to do."""

    def stage_ended(self, stage: str, state: str, seconds: float) -> None:
        """Nothing to do."""

    def message(self, text: str) -> None:
        """Nothing to do."""
