"""The checks before the first fit: one stage of a run makes them, and stages that begin meanwhile wait for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kdq_flows.run.node import Heard

_POLL_SECONDS = 0.1


class ChecksAhead:
    """Whether a run has made its checks; thread-safe.

    Attributes:
        done: whether a worker has passed them.
    """

    def __init__(self) -> None:
        self.done = False
        self._turn = threading.Lock()

    @contextmanager
    def turn(self, heard: Heard, refuse: Callable[[], None], *, waits: bool) -> Iterator[Heard]:
        """Begin a stage in a worker, which makes the checks if they are not `done`; give what shall hear its events.

        Args:
            heard: hears the events of the stage.
            refuse: called while this stage waits; raises if the run was cancelled.
            waits: whether to wait for a stage that makes them now; it needs events as they happen.
        """
        held = waits and self._waited(refuse)

        def hear(event: dict[str, Any]) -> None:
            nonlocal held
            if event["event"] == "checked":
                self.done = True
                if held:
                    held = False
                    self._turn.release()
            else:
                heard(event)

        try:
            yield hear
            self.done = True
        finally:
            if held:
                self._turn.release()

    def _waited(self, refuse: Callable[[], None]) -> bool:
        """Wait until the checks are done, or until it is this stage's turn to make them; whether it is."""
        while not self.done:
            if self._turn.acquire(timeout=_POLL_SECONDS):
                if not self.done:
                    return True
                self._turn.release()
            refuse()
        return False
