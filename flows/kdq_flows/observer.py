"""Who watches a run: the command line, a log, or nobody."""

from __future__ import annotations

from typing import Any, Protocol


class Observer(Protocol):
    """Hears what happens in a run. KDQ calls it from several threads."""

    def stage_started(self, stage: str) -> None:
        """The stage is not cached and starts to run."""

    def progress(self, event: dict[str, Any]) -> None:
        """A running stage has done `done` of `total` steps; `note` is a short text."""

    def stage_ended(self, stage: str, state: str, seconds: float) -> None:
        """The stage has ended; `state` is `ran`, `cached`, `shared`, `failed` or `interrupted`."""

    def message(self, text: str) -> None:
        """A text that the user should read."""


class Silent:
    """An observer that ignores everything."""

    def stage_started(self, stage: str) -> None:
        """Nothing to do."""

    def progress(self, event: dict[str, Any]) -> None:
        """Nothing to do."""

    def stage_ended(self, stage: str, state: str, seconds: float) -> None:
        """Nothing to do."""

    def message(self, text: str) -> None:
        """Nothing to do."""
