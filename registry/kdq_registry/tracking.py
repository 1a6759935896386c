"""Track a pipeline run as one MLflow run, with a nested run per stage.

A tracker calls no MLflow: it writes events into the run's spool, with the time at which they happened.
`kdq_registry.uploading` sends them.
"""

from __future__ import annotations

import importlib.metadata
import platform
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kdq_registry.page import LOCK, NOTE_TAG, made_by, points
from kdq_registry.spool import OWNER_TAG, Spool, place_of, shelf

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Recipe, Site
    from kdq_core.store.records import Choice, EpochRecord, Gain, Metric

Status = Literal["FINISHED", "FAILED", "KILLED"]

PACKAGES = ("kdq", "torch", "onnx", "onnxruntime", "mlflow")


class Tracker:
    """Writes the events of one pipeline run. Safe to use from several threads at once.

    Attributes:
        spool: where the events are.
        run: the id of the pipeline's run in the events; `stage_run` gives those of the stages.
    """

    def __init__(self, spool: Spool, owner: str) -> None:
        """Write into a spool; use `Tracker.begin` to open the run too."""
        self.spool, self.run = spool, uuid.uuid4().hex
        self._owner = owner
        self._open = dict[str, None]()
        self._lock = threading.Lock()

    @classmethod
    def begin(
        cls, site: Site, recipe: Recipe, *, owner: str, plan_tags: Mapping[str, str], name: str | None = None,
        data: str | None = None, prefect: str | None = None,
    ) -> Tracker:  # fmt: skip
        """Begin the run of this pipeline run, in the experiment with the recipe's name.

        Args:
            site: its home holds the spool.
            recipe: logged as `recipe.yaml`, and field by field as params.
            owner: the process that owns the run; `reconcile` closes runs whose owner is dead.
            plan_tags: further tags of the run.
            name: name of the run; by default the recipe's name.
            data: the data's fingerprint; becomes the run's data set.
            prefect: address of the flow run's page in Prefect, for the description.

        Raises:
            StoreError: the home cannot be written.
        """
        name = name or recipe.name
        tracker = cls(Spool(shelf(site) / name), owner)
        tags = {OWNER_TAG: owner, NOTE_TAG: _about(recipe, prefect)} | made_by("kdq run") | environment_tags()
        tracker._add(
            "open", tracker.run, name=name, experiment=recipe.name, tags=tags | dict(plan_tags), place=place_of(site)
        )
        fields = recipe.model_dump(mode="json", by_alias=True)
        tracker.log_params(tracker.run, fields)
        tracker._add("text", tracker.run, file="recipe.yaml", text=_yaml(fields))
        if data is not None:
            tracker._add("data", tracker.run, workload=recipe.workload.model_dump(mode="json"), fingerprint=data)
        return tracker

    def stage_run(self, stage: str, key: str, options: Mapping[str, Any], at: float | None = None) -> str:
        """Open the nested run of a stage, with its options as params.

        Args:
            stage: name of the stage; becomes the run's name.
            key: the stage's key, as in the store.
            options: options of the stage; nested values are flattened to dotted names.
            at: when the stage began, in seconds since 1970; by default now.

        Returns:
            The id of the new run in the events.
        """
        note = f"Stage `{stage}`; its result has the key `{key}` in the store of KDQ_HOME."
        tags = {OWNER_TAG: self._owner, "kdq.stage": stage, NOTE_TAG: note} | made_by(f"kdq run, stage {stage}")
        run = uuid.uuid4().hex
        with self._lock:
            self._open[run] = None
        self._add("open", run, at, name=stage, parent=self.run, tags=tags)
        self.log_params(run, options)
        return run

    def log_params(self, run: str, params: Mapping[str, Any]) -> None:
        """Add params; nested values are flattened to dotted names, and MLflow cuts long values."""
        self._add("log", run, params={name: str(value) for name, value in flattened(params)})

    def log_epochs(self, run: str, records: Sequence[EpochRecord], at: float | None = None) -> None:
        """Write the curves of a fit, with one step per epoch.

        Args:
            run: the run of the stage.
            records: the epochs.
            at: when they ended, in seconds since 1970; by default now.
        """
        found = [(name, value, r.epoch) for r in records for name, value in r.values.items()]
        self._add("log", run, at, points=found)

    def log_papers(self, report: str, lock: str | None) -> None:
        """Keep the report of the pipeline run, in Markdown, and its lock, if it finished."""
        self._add("text", self.run, file="report.md", text=report)
        if lock is not None:
            self._add("text", self.run, file=LOCK, text=lock)

    def log_metrics(self, run: str, role: str, metrics: Sequence[Metric]) -> None:
        """Write the metrics of one model as `role/name`, with `_low` and `_high` for those with an interval."""
        self._add("log", run, points=list(points(role, metrics)))

    def log_gains(self, run: str, gains: Sequence[Gain]) -> None:
        """Write the teacher's effect as `teacher_difference/metric`; a tag of that name says whether it is a gain.

        Further metrics give its interval (`_low`, `_high`) and the values of both models (`_taught`, `_control`).
        """
        found, verdicts = [], {}
        for gain in gains:
            ends = {"": gain.difference, "_low": gain.low, "_high": gain.high}
            ends |= {"_taught": gain.taught, "_control": gain.control}
            name = f"teacher_difference/{gain.metric}"
            found += [(f"{name}{end}", value, 0) for end, value in ends.items()]
            verdicts[name] = gain.verdict
        self._add("log", run, points=found, tags=verdicts)

    def log_choice(self, run: str, choice: Choice) -> None:
        """Write the quantizer that the run chose, why, and the figures of both as `quantizer/NAME/METRIC`."""
        found = [(f"quantizer/{name}/{choice.metric}", value, 0) for name, value in choice.values.items()]
        tags = {"kdq.quantizer": choice.use, "kdq.quantizer.why": choice.why}
        self._add("log", run, points=found, tags=tags)

    def log_page(self, html: str) -> None:
        """Add the page of the run as the artifact `report.html`."""
        self._add("text", self.run, file="report.html", text=html)

    def finish(self, run: str, status: Status) -> None:
        """Close the run of a stage."""
        with self._lock:
            self._open.pop(run, None)
        self._add("end", run, status=status)

    def end(self, status: Status) -> None:
        """Close the pipeline run, and every stage run that is still open, with one status."""
        for run in (*list(self._open), self.run):
            self.finish(run, status)

    def _add(self, what: str, run: str, at: float | None = None, **facts: Any) -> None:
        self.spool.append({"do": what, "run": run, **facts}, at)


def environment_tags() -> dict[str, str]:
    """Return Python, platform and the versions of the packages that affect results, without importing them."""
    tags = {"kdq.env.python": platform.python_version(), "kdq.env.platform": platform.platform()}
    for package in PACKAGES:
        try:
            tags[f"kdq.env.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            tags[f"kdq.env.{package}"] = "not installed"
    return tags


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and sequences under dotted names: `teacher.fit.epochs`, `evaluate.0.use`."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    pairs = list(items)
    if not pairs and name:
        yield name, value
    for part, inner in pairs:
        yield from flattened(inner, f"{name}.{part}" if name else str(part))


def _about(recipe: Recipe, prefect: str | None) -> str:
    lines = [f"KDQ's run of the recipe `{recipe.name}`: workload `{recipe.workload.use}`, for `{recipe.target.use}`."]
    if prefect:
        lines.append(f"[Stages, states and logs in Prefect]({prefect})")
    return "\n\n".join(lines)


def _yaml(fields: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
