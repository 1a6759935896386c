"""Where benchmarks/chaos.py kills, and what: the points, placed by time and behind calls."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

VICTIMS = {
    "inline": ("parent", "child", "warm", "mlflow", "all"),
    "prefect": ("parent", "child", "warm", "prefect", "mlflow", "all"),
    "serve": ("parent", "child", "warm", "worker", "serve", "prefect", "mlflow", "all"),
}
"""What can be killed in each way of running: `kdq run --no-server`, `kdq run`, and a schedule of `kdq serve`."""
OUTAGES = 2
"""How many points kill all while an interval schedule runs, and leave it dead for two ticks."""
SEED = 18
Calls = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Point:
    """One kill.

    Attributes:
        name: of the recipe, and so of its model.
        mode: a key of `VICTIMS`, or `outage`.
        victim: what is killed.
        call: behind which call of which process, such as `child Store.commit`; empty: by time.
        number: behind which of these calls.
        share: at which share of the time of an undisturbed run, if there is no call.
    """

    name: str
    mode: str
    victim: str
    call: str = ""
    number: int = 0
    share: float = 0.0

    @property
    def text(self) -> str:
        """The point in words."""
        at = f"behind call {self.number} of {self.call}" if self.call else f"after {self.share:.0%} of the time"
        return f"{self.mode}: {self.victim} {'' if self.mode == 'outage' else at}".strip()

    @property
    def facts(self) -> dict[str, Any]:
        """The point for JSON."""
        return asdict(self)


def counted(tape: str) -> dict[str, int]:
    """How often each process made each call, from the lines `role call pid` of a tape."""
    lines = (line.rpartition(" ") for line in tape.splitlines())
    return dict(Counter(call for call, _, pid in lines if call.count(" ") == 1 and pid.isdecimal()))


def points_of(calls: Calls, number: int) -> list[Point]:
    """Points in an order in which the first ones cover the most.

    Args:
        calls: how often each process made each call in an undisturbed run, by mode.
        number: how many points at most.
    """
    dice = random.Random(SEED)
    behind = list(_behind_each_call(calls, dice))
    others = list(itertools.islice(_others(calls, dice), max(number - len(behind) - OUTAGES, 0)))
    outages = [{"mode": "outage", "victim": "all"}] * OUTAGES
    both = [one for pair in itertools.zip_longest(behind, [*outages, *others]) for one in pair if one is not None]
    return [Point(name=f"chaos-{place:03}", **one) for place, one in enumerate(both[:number], 1)]


def _behind_each_call(calls: Calls, dice: random.Random) -> Iterator[dict[str, Any]]:
    """One point behind each call that any process makes: it kills that process, in each mode in turn."""
    turn = itertools.count()
    for call in sorted({call for found in calls.values() for call in found}):
        modes = [mode for mode in VICTIMS if call in calls.get(mode, {})]
        mode = modes[next(turn) % len(modes)]
        victim = call.partition(" ")[0]
        yield {"mode": mode, "victim": victim, "call": call, "number": dice.randint(1, calls[mode][call])}


def _others(calls: Calls, dice: random.Random) -> Iterator[dict[str, Any]]:
    """Every victim of every mode in turn, by time and behind a call that is drawn."""
    for by_time in itertools.cycle((True, False)):
        pairs = [(mode, victim) for mode, victims in VICTIMS.items() if mode in calls for victim in victims]
        dice.shuffle(pairs)
        for mode, victim in pairs:
            found = sorted(calls[mode])
            call = dice.choice(found)
            place = {"share": round(dice.uniform(0.05, 0.95), 2)} if by_time else {
                "call": call, "number": dice.randint(1, calls[mode][call])
            }  # fmt: skip
            yield {"mode": mode, "victim": victim, **place}
