"""Track a pipeline run as one MLflow run, with a nested run per stage.

KDQ uses explicit run ids only, because MLflow's fluent functions make unwanted runs in threads.
"""

from __future__ import annotations

import importlib.metadata
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kdq_registry.environment import client, mlflow_errors
from kdq_registry.experiments import experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Recipe, Site
    from kdq_core.store.records import EpochRecord, Gain, Metric

Status = Literal["FINISHED", "FAILED", "KILLED"]

OWNER_TAG = "kdq.owner"
PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000
PACKAGES = ("kdq", "torch", "onnx", "onnxruntime", "mlflow")


class Tracker:
    """Writes one pipeline run into MLflow. Safe to use from several threads at once."""

    def __init__(self, site: Site, mlflow: MlflowClient, experiment: str, run_id: str, owner: str) -> None:
        """Hold an open run; use `Tracker.begin` to make one."""
        self.run_id = run_id
        self._site = site
        self._mlflow = mlflow
        self._experiment = experiment
        self._owner = owner
        self._open: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def begin(
        cls, site: Site, recipe: Recipe, *, owner: str, plan_tags: dict[str, str], name: str | None = None
    ) -> Tracker:
        """Make the experiment (the recipe's name) and the run of this pipeline run.

        Args:
            site: where MLflow is.
            recipe: logged as `recipe.yaml`, and field by field as params.
            owner: the process that owns the run; `reconcile` closes runs whose owner is dead.
            plan_tags: further tags of the run, such as the data's fingerprint.
            name: name of the run; by default the recipe's name.

        Raises:
            TransientError: the tracking server cannot be reached.
            StageError: MLflow refused.
        """
        with mlflow_errors(site):
            mlflow = client(site)
            experiment = experiment_id(mlflow, site, recipe.name)
            tags = {OWNER_TAG: owner} | environment_tags() | plan_tags
            run_id = mlflow.create_run(experiment, tags=tags, run_name=name or recipe.name).info.run_id
            fields = recipe.model_dump(mode="json", by_alias=True)
            _log_params(mlflow, run_id, fields)
            mlflow.log_dict(run_id, fields, "recipe.yaml")
        return cls(site, mlflow, experiment, run_id, owner)

    def stage_run(self, stage: str, key: str, options: Mapping[str, Any]) -> str:
        """Open the nested run of a stage, with its options as params.

        Args:
            stage: name of the stage; becomes the run's name.
            key: the stage's key, as in the store.
            options: options of the stage; nested values are flattened to dotted names.

        Returns:
            The id of the new run.
        """
        tags = {"mlflow.parentRunId": self.run_id, OWNER_TAG: self._owner, "kdq.stage": stage, "kdq.key": key}
        with mlflow_errors(self._site):
            run_id = str(self._mlflow.create_run(self._experiment, tags=tags, run_name=stage).info.run_id)
            with self._lock:
                self._open.add(run_id)
            _log_params(self._mlflow, run_id, options)
        return run_id

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Add params; nested values are flattened to dotted names, and MLflow cuts long values."""
        with mlflow_errors(self._site):
            _log_params(self._mlflow, run_id, params)

    def log_epochs(self, run_id: str, records: Sequence[EpochRecord]) -> None:
        """Write the curves of a fit, with one step per epoch."""
        self._log(run_id, [(name, value, r.epoch) for r in records for name, value in r.values.items()])

    def log_metrics(self, run_id: str, role: str, metrics: Sequence[Metric]) -> None:
        """Write the metrics of one model as `role/name`, with `_low` and `_high` for those with an interval."""
        points = []
        for metric in metrics:
            ends = {"": metric.value, "_low": metric.low, "_high": metric.high}
            points += [(f"{role}/{metric.name}{end}", v, 0) for end, v in ends.items() if v is not None]
        self._log(run_id, points)

    def log_gains(self, run_id: str, gains: Sequence[Gain]) -> None:
        """Write the teacher's effect as `teacher_difference/metric`; a tag of that name says whether it is a gain.

        Further metrics give its interval (`_low`, `_high`) and the values of both models (`_taught`, `_control`).
        """
        points = []
        for gain in gains:
            ends = {"": gain.difference, "_low": gain.low, "_high": gain.high}
            ends |= {"_taught": gain.taught, "_control": gain.control}
            name = f"teacher_difference/{gain.metric}"
            points += [(f"{name}{end}", value, 0) for end, value in ends.items()]
            with mlflow_errors(self._site):
                self._mlflow.set_tag(run_id, name, gain.verdict)
        self._log(run_id, points)

    def log_page(self, html: str) -> None:
        """Add the page of the run as the artifact `report.html`."""
        with mlflow_errors(self._site):
            self._mlflow.log_text(self.run_id, html, "report.html")

    def finish(self, run_id: str, status: Status) -> None:
        """Close the run of a stage."""
        with mlflow_errors(self._site):
            self._mlflow.set_terminated(run_id, status)
        with self._lock:
            self._open.discard(run_id)

    def end(self, status: Status) -> None:
        """Close the pipeline run, and every stage run that is still open, with one status."""
        with self._lock:
            left = sorted(self._open)
        for run_id in (*left, self.run_id):
            self.finish(run_id, status)

    def _log(self, run_id: str, points: Sequence[tuple[str, float, int]]) -> None:
        with mlflow_errors(self._site):
            from mlflow.entities import Metric as Point

            now = int(time.time() * 1000)
            made = [Point(name, value, now, step) for name, value, step in points]
            for start in range(0, len(made), METRICS_PER_CALL):
                self._mlflow.log_batch(run_id, metrics=made[start : start + METRICS_PER_CALL])


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


def _log_params(mlflow: MlflowClient, run_id: str, options: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    params = [Param(name, str(value)) for name, value in flattened(options)]
    for start in range(0, len(params), PARAMS_PER_CALL):
        mlflow.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
