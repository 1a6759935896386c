"""The policies of a schedule: what becomes of missed runs, and of a run that is due while the one before still runs.

KDQ decides this itself when a run begins. Prefect's own limit on the runs of a deployment has a slot that stays taken
when a server dies, cancels every run that waits for the slot, and ends a healthy run whose slot it cannot renew.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime

from kdq_core.frozen import Frozen

Missed = Literal["one", "none", "all"]
Overlap = Literal["skip", "queue", "cancel"]
LATE = "SkippedLate"
OVERLAP = "SkippedOverlap"


class Policy(Frozen):
    """What a schedule does with runs that are not on time.

    Attributes:
        missed: of the runs that were missed, `one` (the newest) runs, `none`, or `all`.
        overlap: a run that is due while the one before still runs is skipped (`skip`) or waits for it (`queue`), or KDQ
            ends the one before (`cancel`).
        allowed_lag_seconds: a run that starts later than this is missed; `None` allows any lag.
    """

    missed: Missed = "one"
    overlap: Overlap = "skip"
    allowed_lag_seconds: float | None = None


class Due(Frozen):
    """A run of a schedule.

    Attributes:
        name: its name.
        due: when it was due.
        began: when it began to work; `None` if it has not, or only found that it is skipped.
        ended: when it ended.
        given_up: it was skipped or cancelled, or its process died and nobody resumed it.
    """

    name: str
    due: AwareDatetime
    began: AwareDatetime | None = None
    ended: AwareDatetime | None = None
    given_up: bool = False

    @property
    def runs(self) -> bool:
        """Whether it is at work."""
        return self.began is not None and self.ended is None and not self.given_up

    @property
    def waits(self) -> bool:
        """Whether it has not begun."""
        return self.began is None and not self.given_up


class Skip(Frozen):
    """Why a run is skipped; `name` is that of its state in Prefect."""

    name: str
    message: str


def skipping(one: Due, others: Iterable[Due], policy: Policy, now: datetime, *, outage: bool = False) -> Skip | None:
    """Whether a schedule's policies skip a run, and why.

    Args:
        one: a run that is due and has not begun.
        others: further runs of the same schedule.
        policy: of the schedule.
        now: the time, with its zone.
        outage: nothing could run until now, so every run that is due was missed.
    """
    others = [other for other in others if not other.given_up]
    if policy.overlap == "skip":
        for other in others:
            if other.began is not None and other.began < one.due and (other.ended is None or other.ended > one.due):
                return Skip(name=OVERLAP, message=f"the run {other.name!r} was at work at {_at(one.due)}")
    late, allowed = (now - one.due).total_seconds(), policy.allowed_lag_seconds
    over = allowed is not None and late > allowed
    if policy.missed == "none" and over:
        return Skip(name=LATE, message=f"more than {allowed:g} s after its time {_at(one.due)}")
    newer = [other.due for other in others if one.due < other.due <= now]
    if policy.missed == "one" and newer and (over or outage):
        return Skip(name=LATE, message=f"missed at {_at(one.due)}; the run that was due at {_at(max(newer))} makes up")
    return None


def overlapped(runs: Iterable[Due], policy: Policy, now: datetime) -> bool:
    """Whether KDQ must end the run that is at work, because another one is due."""
    if policy.overlap != "cancel":
        return False
    runs = list(runs)
    return any(one.runs for one in runs) and any(one.waits and one.due <= now for one in runs)


def _at(time: datetime) -> str:
    return time.isoformat(sep=" ", timespec="seconds")
