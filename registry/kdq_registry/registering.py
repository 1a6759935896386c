"""Register the int8 file as an MLflow model version.

KDQ never registers the same bytes twice. If asked again, it gives their version the new gates and the new report.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.errors import RecipeError
from kdq_core.locks import held
from kdq_core.recipe.spec import Site
from kdq_core.store.hashing import sha256_file
from kdq_core.store.records import ModelVersion
from kdq_registry.card import DESCRIPTION_LIMIT, card
from kdq_registry.environment import actor, client, folder, local_database, mlflow_errors, read_only, redacted
from kdq_registry.experiments import experiment_id
from kdq_registry.logged import LOGGED_TAG, OWNER_TAG, SHA_TAG, by_bytes, discard, link, new_logged, own_run, sweep
from kdq_registry.packing import Package, pack, seal
from kdq_registry.page import fill, shown_at
from kdq_registry.resealing import reseal
from kdq_registry.scratch import scratch
from kdq_registry.seal import SEAL_TAG
from kdq_registry.versions import CHAIN_SUFFIX, direct, is_chain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

    from kdq_core.recipe.spec import Gate, Recipe
    from kdq_core.store.records import Artifact, EvaluationReport

REPORT_TAG = "kdq.report"
CREATOR_TAG = "kdq.registered_by"
"""Who registered the version: MLflow's page has a column for it, which no part of MLflow fills."""
TAG_LIMIT = 100_000
"""Characters MLflow allows in a tag of a model version."""


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
    samples: Mapping[str, np.ndarray] | None = None,
    lock: str | None = None,
) -> ModelVersion:
    """Make a version of the recipe's model from the int8 file, or return the one that has the same bytes.

    An existing version is sealed anew, so that a promotion checks the recipe's current gates against the newest report.

    Args:
        site: where MLflow is.
        recipe: names the model, and holds the gates its promotion must meet.
        artifact_file: the ONNX file; KDQ registers it byte for byte.
        artifact: names, types and shapes of its inputs and outputs become the signature.
        report: the metrics of the file; sealed, and kept as the tag `kdq.report` for lists.
        lineage: digests of everything the file was made from; sealed.
        run_id: the MLflow run that made the file; `None` makes a run for the registration alone.
        example: one batch, input name to array (dtype and shape of `artifact.inputs`).
        samples: what the file did on each sample of the test split, by metric.
        lock: the lock of the run, for `kdq replay`; sealed.

    Raises:
        RecipeError: the model's name is one that KDQ keeps for histories.
        TransientError: the tracking server cannot be reached.
        StageError: MLflow refused, a package is missing, or the file does not run in its runtime.
    """
    name = recipe.model_name
    if is_chain(name):
        raise RecipeError(
            f"the model name {name!r} ends in {CHAIN_SUFFIX!r}, which KDQ keeps for histories; choose another"
        )
    about = card(site, recipe, artifact, report, lineage)
    package = Package(recipe, artifact_file, artifact, report, lineage, example, samples or {}, about, lock)
    sha256 = sha256_file(artifact_file)
    tags = {SHA_TAG: sha256, REPORT_TAG: _report_tag(report, recipe.gates)}
    with mlflow_errors(site), held(folder(site) / ".register.lock"):
        mlflow = client(site)
        experiment = experiment_id(mlflow, site, recipe.name)
        sweep(site, mlflow, [experiment])
        known = by_bytes(mlflow, name, sha256)
        if known:
            return _again(site, mlflow, known[0], package, tags)
        return _made(site, mlflow, package, tags, experiment, run_id)


def add_version(
    site: Site, mlflow: MlflowClient, name: str, logged: LoggedModel, run_id: str, tags: Mapping[str, str], about: str
) -> Any:
    """Make a version of a logged model; of the versions with the same bytes the lowest number stays.

    Args:
        site: where MLflow is.
        mlflow: a client of the site.
        name: the registered model.
        logged: the logged model.
        run_id: the run that made it.
        tags: tags of the version.
        about: its description in Markdown.

    Returns:
        MLflow's version: the new one, or that of a process on another machine that registered the same bytes.
    """
    from mlflow.exceptions import MlflowException

    try:
        mlflow.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # The artifact location, not `models:/<id>`: MLflow resolves the latter with its process-global address.
    named = {**tags, LOGGED_TAG: logged.model_id, CREATOR_TAG: actor()}
    made = mlflow.create_model_version(
        name, logged.artifact_location, run_id, named, description=about, model_id=logged.model_id,
        await_creation_for=0,
    )  # fmt: skip
    first = by_bytes(mlflow, name, tags[SHA_TAG])[0]
    if int(first.version) != int(made.version):
        mlflow.delete_model_version(name, made.version)
        discard(site, mlflow, logged)
        return first
    link(mlflow, logged, name, int(made.version))
    return made


def _made(
    site: Site, mlflow: MlflowClient, package: Package, tags: dict[str, str], experiment: str, run_id: str | None
) -> ModelVersion:
    """Upload the files, then make the version: a version that exists is whole."""
    recipe, name = package.recipe, package.recipe.model_name
    run = run_id or own_run(site, mlflow, experiment, name)
    logged = new_logged(site, mlflow, experiment, name, run, tags[SHA_TAG])
    with scratch(site) as path:
        pack(package, logged, path / "model")
        tags[SEAL_TAG] = seal(site, package, path / "model")
        mlflow.log_model_artifacts(logged.model_id, str(path / "model"))
    fill(mlflow, run, logged.model_id, recipe, package.report, package.lineage)
    mlflow.finalize_logged_model(logged.model_id, "READY")
    short = card(site, recipe, package.artifact, package.report, package.lineage, limit=DESCRIPTION_LIMIT)
    made = add_version(site, mlflow, name, logged, run, tags, short)
    if run_id is None:
        mlflow.delete_tag(run, OWNER_TAG)
    if made.source != logged.artifact_location:
        return _again(site, mlflow, made, package, tags)
    shown_at(mlflow, run, logged.model_id)
    return _record(site, made, tags[SHA_TAG])


def _again(site: Site, mlflow: MlflowClient, version: Any, package: Package, tags: Mapping[str, str]) -> ModelVersion:
    digest = reseal(site, mlflow, version, package)
    for tag, value in {**tags, SEAL_TAG: digest}.items():
        direct(mlflow).set_model_version_tag(version.name, version.version, tag, value)
    about = card(site, package.recipe, package.artifact, package.report, package.lineage, limit=DESCRIPTION_LIMIT)
    direct(mlflow).update_model_version(version.name, version.version, about)
    if version.run_id and LOGGED_TAG in version.tags:
        fill(mlflow, version.run_id, version.tags[LOGGED_TAG], package.recipe, package.report, package.lineage)
    return _record(site, version, tags[SHA_TAG])


def find_version(site: Site, name: str, sha256: str) -> ModelVersion | None:
    """Find the version of model `name` with these bytes; `None` if there is none.

    Args:
        site: where MLflow is.
        name: name of the registered model.
        sha256: digest (hex) of the registered file.
    """
    with mlflow_errors(site):
        found = by_bytes(client(site), name, sha256)
    return _record(site, found[0], sha256) if found else None


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
