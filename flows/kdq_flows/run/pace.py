"""How far a stage is, how long it still takes, and when a log says so again."""

from __future__ import annotations

SHARE, PATIENCE, PAUSE = 0.1, 30.0, 3.0
"""A log has a line when `SHARE` more of the stage is done or after `PATIENCE` seconds, but never within `PAUSE` seconds
after the last one."""


class Pace:
    """The pace of one stage; times are in seconds of any clock that does not go back.

    Attributes:
        share: of the stage that is done.
        note: such as the epoch and the loss.
    """

    def __init__(self, now: float) -> None:
        self._began = self._part = self._told = now
        self._said = self.share = 0.0
        self.note = ""

    def at(self, done: float, total: float, note: str, now: float) -> None:
        """Note that `done` of `total` steps are done. A share below the last one begins another part of the stage."""
        share = done / max(total, 1)
        if share < self.share:
            self._part, self._said = now, min(self._said, share)
        self.share, self.note = share, note

    def due(self, now: float) -> bool:
        """Whether the stage has a new line."""
        since = now - self._told
        return since >= PATIENCE or (since >= PAUSE and self.share >= self._said + SHARE)

    def line(self, now: float) -> str:
        """The line, which then counts as told."""
        self._told, self._said = now, self.share
        left = self.left(now)
        words = f"{self.share:4.0%} after {in_words(now - self._began)}{f', {left}' if left else ''}"
        return f"{words}: {self.note}" if self.note else words

    def left(self, now: float) -> str:
        """`about 3 min left`, as the steps so far tell; empty at the ends."""
        if not 0 < self.share < 1:
            return ""
        return f"about {in_words((now - self._part) * (1 - self.share) / self.share)} left"


def in_words(seconds: float) -> str:
    """A duration such as `41 s`, `3 min` or `2 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
