"""What MLflow's pages show of runs and models: who made them, on which data, with which figures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdq_registry.environment import user

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Recipe
    from kdq_core.store.records import EvaluationReport, Metric

NOTE_TAG = "mlflow.note.content"
"""The description of a run."""
CARD, LOCK, BILL = "model-card.md", "lock.json", "bom.json"
"""Files of a version: its card, the lock of its run, which is an artifact of the run too, and the bill of materials."""
DIGEST_LENGTH = 36
"""Characters that MLflow keeps of a data set's digest."""
METRICS_PER_CALL = 1000


def made_by(source: str) -> dict[str, str]:
    """Make the tags that MLflow shows as source and creator."""
    return {"mlflow.user": user(), "mlflow.source.name": source, "mlflow.source.type": "LOCAL"}


def training_page(server: str, path: str = "experiments") -> str:
    """Address of a page of MLflow in its mode for model training.

    MLflow 3.17 opens every other address in the mode that the browser used last, at first the one for language models.
    """
    return f"{server.rstrip('/')}/#/{path}?workflowType=machine_learning"


def dataset(workload: Mapping[str, Any], fingerprint: str) -> Any:
    """Describe the data of a recipe's workload as an input of a run; MLflow itself would hash 10,000 rows only."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = {**workload, "fingerprint": fingerprint}
    data = Dataset(workload["use"], fingerprint[:DIGEST_LENGTH], "kdq", json.dumps(source))
    return DatasetInput(data, [InputTag("mlflow.data.context", "train, validation, test")])


def points(role: str, metrics: Sequence[Metric]) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of each metric of one model, with the ends of its interval as `_low` and `_high`."""
    for metric in metrics:
        ends = {"": metric.value, "_low": metric.low, "_high": metric.high}
        yield from ((f"{role}/{metric.name}{end}", value, 0) for end, value in ends.items() if value is not None)


def fill(
    mlflow: MlflowClient,
    run_id: str,
    model_id: str,
    recipe: Recipe,
    report: EvaluationReport,
    lineage: Mapping[str, str],
) -> None:
    """Give the pages of a logged model and of its run the figures of the file and their data.

    Args:
        mlflow: a client of the site.
        run_id: the run that made the model.
        model_id: the logged model.
        recipe: names the workload.
        report: the figures of the int8 file.
        lineage: digests of everything the file was made from; `data` is the fingerprint of the data.
    """
    from mlflow.entities import Metric as Point

    data = lineage.get("data")
    of = {} if data is None else {"dataset_name": recipe.workload.use, "dataset_digest": data[:DIGEST_LENGTH]}
    if data is not None:
        mlflow.log_inputs(run_id, datasets=[dataset(recipe.workload.model_dump(mode="json"), data)])
    now = int(time.time() * 1000)
    made = [
        Point(name, value, now, step, model_id=model_id, run_id=run_id, **of)
        for name, value, step in points("int8", report.models.get("int8", ()))
    ]
    for start in range(0, len(made), METRICS_PER_CALL):
        mlflow.log_batch(run_id, metrics=made[start : start + METRICS_PER_CALL])


def shown_at(mlflow: MlflowClient, run_id: str, model_id: str) -> None:
    """Let the page of a run name the logged model that it gave."""
    from mlflow.entities import LoggedModelOutput

    mlflow.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
