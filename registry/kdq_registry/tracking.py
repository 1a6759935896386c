"""Track a pipeline run as one MLflow run, with a nested run per stage.

KDQ uses explicit run ids only, because MLflow's fluent functions make unwanted runs in threads.
"""

from __future__ import annotations

import importlib.metadata
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kdq_registry.environment import client, mlflow_errors
from kdq_registry.experiments import experiment_id
from kdq_registry.page import LOCK, METRICS_PER_CALL, NOTE_TAG, dataset, made_by, points, training_page

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Recipe, Site
    from kdq_core.store.records import EpochRecord, Gain, Metric

Status = Literal["FINISHED", "FAILED", "KILLED"]

OWNER_TAG = "kdq.owner"
PARAMS_PER_CALL = 100
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
        cls, site: Site, recipe: Recipe, *, owner: str, plan_tags: dict[str, str], name: str | None = None,
        data: str | None = None, prefect: str | None = None,
    ) -> Tracker:  # fmt: skip
        """Make the experiment (the recipe's name) and the run of this pipeline run.

        Args:
            site: where MLflow is.
            recipe: logged as `recipe.yaml`, and field by field as params.
            owner: the process that owns the run; `reconcile` closes runs whose owner is dead.
            plan_tags: further tags of the run.
            name: name of the run; by default the recipe's name.
            data: the data's fingerprint; becomes the run's data set.
            prefect: address of the flow run's page in Prefect, for the description.

        Raises:
            TransientError: the tracking server cannot be reached.
            StageError: MLflow refused.
        """
        with mlflow_errors(site):
            mlflow = client(site)
            experiment = experiment_id(mlflow, site, recipe.name)
            tags = {OWNER_TAG: owner, NOTE_TAG: _about(recipe, prefect)} | made_by("kdq run") | environment_tags()
            run_id = mlflow.create_run(experiment, tags=tags | plan_tags, run_name=name or recipe.name).info.run_id
            fields = recipe.model_dump(mode="json", by_alias=True)
            _log_params(mlflow, run_id, fields)
            mlflow.log_dict(run_id, fields, "recipe.yaml")
            if data is not None:
                mlflow.log_inputs(run_id, datasets=[dataset(recipe, data)])
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
        note = f"Stage `{stage}`; its result has the key `{key}` in the store of KDQ_HOME."
        tags = {"mlflow.parentRunId": self.run_id, OWNER_TAG: self._owner, "kdq.stage": stage, NOTE_TAG: note}
        tags |= made_by(f"kdq run, stage {stage}")
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

    def log_epochs(self, run_id: str, records: Sequence[EpochRecord], at: float | None = None) -> None:
        """Write the curves of a fit, with one step per epoch.

        Args:
            run_id: the run of the stage.
            records: the epochs.
            at: when they ended, in seconds since 1970; by default now.
        """
        self._log(run_id, [(name, value, r.epoch) for r in records for name, value in r.values.items()], at)

    def log_papers(self, report: str, lock: str | None) -> None:
        """Keep the report of the pipeline run, in Markdown, and its lock, if it finished."""
        with mlflow_errors(self._site):
            self._mlflow.log_text(self.run_id, report, "report.md")
            if lock is not None:
                self._mlflow.log_text(self.run_id, lock, LOCK)

    def page(self, server: str) -> str:
        """Address of the pipeline run's page on the MLflow server at `server`."""
        return training_page(server, f"experiments/{self._experiment}/runs/{self.run_id}")

    def log_metrics(self, run_id: str, role: str, metrics: Sequence[Metric]) -> None:
        """Write the metrics of one model as `role/name`, with `_low` and `_high` for those with an interval."""
        self._log(run_id, points(role, metrics))

    def log_gains(self, run_id: str, gains: Sequence[Gain]) -> None:
        """Write the teacher's effect as `teacher_difference/metric`; a tag of that name says whether it is a gain.

        Further metrics give its interval (`_low`, `_high`) and the values of both models (`_taught`, `_control`).
        """
        found = []
        for gain in gains:
            ends = {"": gain.difference, "_low": gain.low, "_high": gain.high}
            ends |= {"_taught": gain.taught, "_control": gain.control}
            name = f"teacher_difference/{gain.metric}"
            found += [(f"{name}{end}", value, 0) for end, value in ends.items()]
            with mlflow_errors(self._site):
                self._mlflow.set_tag(run_id, name, gain.verdict)
        self._log(run_id, found)

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

    def _log(self, run_id: str, found: Iterable[tuple[str, float, int]], at: float | None = None) -> None:
        with mlflow_errors(self._site):
            from mlflow.entities import Metric as Point

            now = int((at or time.time()) * 1000)
            made = [Point(name, value, now, step) for name, value, step in found]
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


def _about(recipe: Recipe, prefect: str | None) -> str:
    lines = [f"KDQ's run of the recipe `{recipe.name}`: workload `{recipe.workload.use}`, for `{recipe.target.use}`."]
    if prefect:
        lines.append(f"[Stages, states and logs in Prefect]({prefect})")
    return "\n\n".join(lines)


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
