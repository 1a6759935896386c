"""A read-only view of a run: its plan, and the entries of finished stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kdq_core.plan.plan import Plan
from kdq_core.store.family import Record
from kdq_core.store.records import Artifact, EvaluationReport, Metric
from kdq_core.store.store import Entry

if TYPE_CHECKING:
    import numpy as np

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class RunView:
    """A run as tables, tracking and reports see it; they ask by slot, never by the name of a stage.

    Attributes:
        plan: the plan of the run.
        entries: verified entries by name of the stage.
    """

    plan: Plan
    entries: Mapping[str, Entry]

    def entry(self, slot: str) -> Entry | None:
        """The entry of the last finished stage that gives `slot`, or `None`."""
        given = [node.name for node in self.plan.nodes if node.gives == slot and node.name in self.entries]
        return self.entries[given[-1]] if given else None

    def record(self, slot: str, of: type[R]) -> R | None:
        """The record in `slot`, or `None` if there is none of that class."""
        entry = self.entry(slot)
        return entry.record if entry is not None and isinstance(entry.record, of) else None

    def records(self, of: type[R]) -> dict[str, R]:
        """All records of a class, by name of the stage, in the order of the plan."""
        done = [(node.name, self.entries[node.name].record) for node in self.plan.nodes if node.name in self.entries]
        return {name: record for name, record in done if isinstance(record, of)}

    def file(self, model: str) -> Path | None:
        """The file of a model of the plan, such as `int8`; `None` before its export."""
        entry, artifact = self.entry("artifact"), self.record("artifact", Artifact)
        name = None if artifact is None else artifact.file_of(model)
        return None if entry is None or name is None else entry.file(name)

    def predictions(self, model: str, split: str = "test") -> dict[str, np.ndarray]:
        """Predictions of the file of `model` for each sample of `split`, in its order: each output `[N, ...]` by name.

        The arrays are memory-mapped and read-only. The dict is empty if no evaluator read predictions.
        """
        from kdq_core.store.predictions import opened

        entry, report = self.entry("report"), self.record("report", EvaluationReport)
        if entry is None or report is None:
            return {}
        asked = [one for one in report.predictions if (one.model, one.split) == (model, split)]
        return {one.output: opened(entry.folder, one) for one in asked}

    def labels(self) -> dict[str, np.ndarray]:
        """Classes of the test split by output of the files, int64 `[N]`; below 0 where a sample has none.

        The dict is empty if no evaluator read predictions, or if the labels are no classes.
        """
        from kdq_core.store.predictions import opened

        entry, report = self.entry("report"), self.record("report", EvaluationReport)
        return {} if entry is None or report is None else {one.name: opened(entry.folder, one) for one in report.labels}

    def shown(self) -> tuple[tuple[int, ...], dict[str, np.ndarray]]:
        """Samples of the test split to show: their rows, and each input `[len(rows), ...]` by name; empty without."""
        from kdq_core.store.predictions import opened

        entry, report = self.entry("report"), self.record("report", EvaluationReport)
        if entry is None or report is None or report.shown is None:
            return (), {}
        return report.shown.rows, {one.name: opened(entry.folder, one) for one in report.shown.inputs}

    def texts(self) -> tuple[str, ...]:
        """The samples to show as text, in the order of `shown`; empty if the workload tells none."""
        report = self.record("report", EvaluationReport)
        return () if report is None or report.shown is None else report.shown.texts

    @property
    def metrics(self) -> dict[str, tuple[Metric, ...]]:
        """The metrics of each model of the plan, in the order of the closing table; empty before the evaluation."""
        report = self.record("report", EvaluationReport)
        return {} if report is None else {m.slot: report.models.get(m.slot, ()) for m in self.plan.models}

    @property
    def digests(self) -> dict[str, str]:
        """Digest of each entry, by name of the stage."""
        return {name: entry.digest for name, entry in self.entries.items()}


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended, for plug-ins that watch runs.

    Attributes:
        name: of the run.
        recipe: name of its recipe.
        status: `completed`, `no-news`, `failed` or `interrupted`.
        seconds: how long it took.
        error: why it failed, or where it was interrupted; `None` otherwise.
        verdict: the int8 file against the float student in one line; empty if they were not measured.
        view: its plan, entries, records, files and predictions.
    """

    name: str
    recipe: str
    status: str
    seconds: float
    error: str | None
    verdict: str
    view: RunView
