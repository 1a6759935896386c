"""Register the int8 file as an MLflow model version.

KDQ never registers the same bytes twice. If asked again, it gives their version the new gates and the new report.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.locks import held
from kdq_core.recipe.spec import Site
from kdq_core.store.records import ModelVersion
from kdq_registry.environment import client, folder, local_database, mlflow_errors, read_only, redacted
from kdq_registry.experiments import experiment_id
from kdq_registry.versions import SHA_TAG

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

    from kdq_core.recipe.spec import Gate, Recipe
    from kdq_core.store.records import Artifact, EvaluationReport, TensorSpec

REPORT_TAG, GATES_TAG = "kdq.report", "kdq.gates"
TAG_LIMIT = 100_000
"""Characters MLflow allows in a tag of a model version."""

REQUIREMENTS = ("onnxruntime", "mlflow-skinny", "pandas")
"""Packages that loading the model as a pyfunc needs (tried in an empty environment)."""


def register(
    site: Site,
    *,
    recipe: Recipe,
    artifact_file: Path,
    artifact: Artifact,
    report: EvaluationReport,
    lineage: dict[str, str],
    run_id: str | None,
    example: dict[str, np.ndarray],
) -> ModelVersion:
    """Make a version of the recipe's model from the int8 file, or return the one that has the same bytes.

    An existing version gets the tags of this call, so that a promotion checks the recipe's current gates against the
    newest report.

    Args:
        site: where MLflow is.
        recipe: names the model, and holds the gates its promotion must meet.
        artifact_file: the ONNX file; KDQ registers it byte for byte.
        artifact: names, types and shapes of its inputs and outputs become the signature.
        report: the metrics of the file; kept as the tag `kdq.report`.
        lineage: digests of everything the file was made from; kept as tags `kdq.lineage.*`.
        run_id: the MLflow run that made the file; `None` makes a run for the registration alone.
        example: one batch, input name to array (dtype and shape of `artifact.inputs`).

    Raises:
        TransientError: the tracking server cannot be reached.
        StageError: MLflow refused, or a package is missing.
    """
    sha256 = hashlib.sha256(artifact_file.read_bytes()).hexdigest()
    tags = {f"kdq.lineage.{name}": digest for name, digest in lineage.items()} | {
        SHA_TAG: sha256,
        REPORT_TAG: _report_tag(report, recipe.gates),
        GATES_TAG: json.dumps([gate.model_dump(mode="json", exclude_none=True) for gate in recipe.gates]),
    }
    with mlflow_errors(site), held(folder(site) / ".register.lock"):
        known = find_version(site, recipe.model_name, sha256)
        mlflow = client(site)
        if known is not None:
            for tag, value in tags.items():
                mlflow.set_model_version_tag(known.name, str(known.version), tag, value)
            return known
        experiment = experiment_id(mlflow, site, recipe.name)
        run = run_id or _own_run(mlflow, experiment, recipe)
        shown = recipe.model_name.replace(".", "-")  # MLflow allows no dots in this name, which is only shown
        logged = mlflow.create_logged_model(experiment, shown, run, {SHA_TAG: sha256}, model_type="onnx")
        with tempfile.TemporaryDirectory(dir=folder(site)) as scratch:
            _save(Path(scratch) / "model", artifact_file, artifact, example, logged)
            mlflow.log_model_artifacts(logged.model_id, str(Path(scratch) / "model"))
        mlflow.finalize_logged_model(logged.model_id, "READY")
        return _new_version(site, mlflow, recipe.model_name, logged, run, tags)


def find_version(site: Site, name: str, sha256: str) -> ModelVersion | None:
    """Find the version of model `name` with these bytes; `None` if there is none.

    Args:
        site: where MLflow is.
        name: name of the registered model.
        sha256: digest (hex) of the registered file.
    """
    with mlflow_errors(site):
        found = client(site).search_model_versions(f"name = '{name}' and tags.`{SHA_TAG}` = '{sha256}'")
    first = min(found, key=lambda version: int(version.version), default=None)
    return None if first is None else _record(site, first, sha256)


def version_exists(version: ModelVersion, site: Site | None = None) -> bool:
    """Say whether the site's registry still has this version with these bytes.

    The function reads a local SQLite file directly, in milliseconds and without importing MLflow.

    Args:
        version: the version that `register` returned.
        site: only a version in this site's registry counts. Without a site, the function asks the version's own
            local file, or its server if the environment names that server.

    Raises:
        TransientError: the tracking server cannot be reached.
        StageError: the database is unreadable.
    """
    database = local_database(version.tracking_uri)
    if site is None and database is None:
        site = Site.from_environment()
    if site is not None and redacted(site.mlflow_uri) != version.tracking_uri:
        return False
    if database is not None:
        return _exists_locally(database, version)
    assert site is not None
    found = find_version(site, version.name, version.file_sha256)
    return found is not None and found.version == version.version


def _exists_locally(database: Path, version: ModelVersion) -> bool:
    if not database.exists():
        return False
    query = (
        "select count(*) from model_versions v join model_version_tags t on t.name = v.name and t.version = v.version "
        "where v.name = ? and v.version = ? and v.current_stage <> 'Deleted_Internal' and t.key = ? and t.value = ?"
    )
    with contextlib.closing(read_only(database)) as connection:
        values = (version.name, version.version, SHA_TAG, version.file_sha256)
        return bool(connection.execute(query, values).fetchone()[0])


def _own_run(mlflow: MlflowClient, experiment: str, recipe: Recipe) -> str:
    run_id = str(mlflow.create_run(experiment, run_name=f"register {recipe.model_name}").info.run_id)
    mlflow.set_terminated(run_id, "FINISHED")
    return run_id


def _save(
    path: Path, artifact_file: Path, artifact: Artifact, example: dict[str, np.ndarray], logged: LoggedModel
) -> None:
    """Write the MLflow model folder with the file's own bytes, because MLflow re-serialises the graph."""
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `import mlflow.onnx` warns of MLflow's own type hints
        import mlflow.onnx
        from mlflow.models import Model, ModelSignature

        mlflow.onnx.save_model(
            onnx.load(artifact_file),
            path,
            mlflow_model=Model(run_id=logged.source_run_id, model_id=logged.model_id, model_uuid=logged.model_id),
            signature=ModelSignature(inputs=_schema(artifact.inputs), outputs=_schema(artifact.outputs)),
            input_example=example,
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
    shutil.copyfile(artifact_file, path / "model.onnx")


def _schema(tensors: Sequence[TensorSpec]) -> Any:
    import numpy as np
    from mlflow.types import Schema
    from mlflow.types import TensorSpec as MlflowTensor

    return Schema([MlflowTensor(np.dtype(tensor.dtype), tensor.shape, tensor.name) for tensor in tensors])


def _new_version(
    site: Site, mlflow: MlflowClient, name: str, logged: LoggedModel, run_id: str, tags: dict[str, str]
) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        mlflow.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # The artifact location, not `models:/<id>`: MLflow resolves the latter with its process-global address.
    made = mlflow.create_model_version(name, logged.artifact_location, run_id, tags, model_id=logged.model_id)
    link = json.dumps([{"name": name, "version": int(made.version)}])
    mlflow.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": link})
    return _record(site, made, tags[SHA_TAG])


def _record(site: Site, version: Any, sha256: str) -> ModelVersion:
    return ModelVersion(
        name=version.name,
        version=int(version.version),
        uri=f"models:/{version.name}/{version.version}",
        tracking_uri=redacted(site.mlflow_uri),
        run_id=version.run_id or "",
        file_sha256=sha256,
    )


def _report_tag(report: EvaluationReport, gates: Sequence[Gate]) -> str:
    """The report as JSON. If it is too long for a tag, it keeps only the metrics that gates and `kdq models` read."""
    text = report.model_dump_json(exclude_none=True)
    if len(text) <= TAG_LIMIT:
        return text
    kept = {"top1", "bytes"} | {gate.metric for gate in gates}
    models = {role: tuple(m for m in metrics if m.name in kept) for role, metrics in report.models.items()}
    return report.model_copy(update={"models": models}).model_dump_json(exclude_none=True)
