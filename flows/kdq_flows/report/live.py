"""Watching a run while it trains: a page with the curves so far, and event files for TensorBoard if they are asked for.

The page stands where the run's report will be, and loads itself anew every few seconds; the report replaces it.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdq_core.errors import RecipeError
from kdq_core.plan.plan import Plan
from kdq_core.plan.view import RunView
from kdq_core.store.records import EpochRecord
from kdq_flows.report import kept, overview

REFRESH = 3
"""Seconds after which the page loads itself anew; KDQ writes it no more often."""
SHARE = 0.005
"""Share of its time that KDQ spends on writing the page: the training beside it needs the CPU."""
LONGEST = 15
"""Seconds after which KDQ writes the page at the latest, if there are new epochs."""


class Live:
    """Hears of each epoch, and shows the curves of all fits of a run on one page."""

    def __init__(self, plan: Plan, run: str, tell: Callable[[str], None]) -> None:
        """Watch the run named `run`; `tell` gets messages for the user.

        Raises:
            RecipeError: event files are asked for, and TensorBoard is not installed.
        """
        self._plan, self._run, self._tell = plan, run, tell
        self._page = kept.folder(plan.site, run) / kept.PAGE
        self._points: dict[str, dict[int, EpochRecord]] = {}
        self._due = float("-inf")
        self._told = False
        self._events = None if plan.site.tensorboard is None else EventFiles(plan.site.tensorboard / run)

    def epoch(self, stage: str, record: dict[str, Any]) -> None:
        """Add one point to the stage's curves. A page that cannot be written costs a message, and never the run."""
        point = EpochRecord.model_validate(record)
        self._points.setdefault(stage, {})[point.epoch] = point
        try:
            if self._events is not None:
                self._events.epoch(stage, point)
            if time.monotonic() >= self._due:
                began = time.monotonic()
                self._write()
                ended = time.monotonic()
                self._due = ended + min(max(REFRESH, (ended - began) / SHARE), LONGEST)
        except Exception as error:
            self._said(f"the curves cannot be shown while the run trains: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Write out the event files."""
        if self._events is not None:
            self._events.close()

    def _write(self) -> None:
        from kdq_flows.report.page import environment

        slots = {stage: self._plan.node(stage).gives for stage in self._points}
        histories = {stage: tuple(found.values()) for stage, found in self._points.items()}
        last = {stage: (max(found), found[max(found)].values) for stage, found in self._points.items()}
        view = RunView(self._plan, {})
        html = environment().get_template("live.html.j2").render(
            run=self._run, refresh=REFRESH, charts=overview.charts_of(histories, slots, view), last=last,
            models=overview.titles_of(view), written=time.strftime("%H:%M:%S"),
        )  # fmt: skip
        self._page.parent.mkdir(parents=True, exist_ok=True)
        kept.write(self._page, html)
        self._said(f"curves while it trains: {self._page}")

    def _said(self, text: str) -> None:
        if not self._told:
            self._told = True
            self._tell(text)


class EventFiles:
    """Event files for TensorBoard, one folder for each stage, so that its page draws the same curve of all together."""

    def __init__(self, folder: Path) -> None:
        """Write below `folder`.

        Raises:
            RecipeError: TensorBoard is not installed.
        """
        if importlib.util.find_spec("tensorboard") is None:
            raise RecipeError(
                "KDQ_TENSORBOARD asks for event files, but the package 'tensorboard' is not installed; install it with "
                "`pip install tensorboard`, or unset KDQ_TENSORBOARD"
            )
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def epoch(self, stage: str, point: EpochRecord) -> None:
        """Write the values of one epoch of a stage."""
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[stage] = SummaryWriter(str(self._folder / stage))
        for name, value in point.values.items():
            self._writers[stage].add_scalar(name, value, point.epoch)
        self._writers[stage].flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
