"""Logged models: the files of a version in MLflow, uploaded before the version is made, and removed if it is not."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from kdq_core.store.hashing import sha256_of
from kdq_registry.environment import folder
from kdq_registry.page import made_by
from kdq_registry.versions import direct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

    from kdq_core.recipe.spec import Site

OWNER_TAG = "kdq.registering"
"""Tag of runs and logged models that a home has begun; it goes when their version stands."""
SHA_TAG, LOGGED_TAG, MODEL_TAG = "kdq.sha256", "kdq.logged_model", "kdq.model"


def own(site: Site) -> str:
    """The home, as runs and logged models name it; only one process of a home registers at a time."""
    import socket

    return sha256_of(f"{socket.gethostname()}:{folder(site).resolve()}".encode())[:16]


def own_run(site: Site, mlflow: MlflowClient, experiment: str, name: str) -> str:
    """A finished run for a registration alone."""
    tags = {OWNER_TAG: own(site)} | made_by("kdq run, stage register")
    run_id = str(mlflow.create_run(experiment, tags=tags, run_name=f"register {name}").info.run_id)
    mlflow.set_terminated(run_id, "FINISHED")
    return run_id


def new_logged(site: Site, mlflow: MlflowClient, experiment: str, name: str, run_id: str, sha256: str) -> LoggedModel:
    """Begin a logged model of this home."""
    shown = name.replace(".", "-")  # MLflow allows no dots in this name, which is only shown
    tags = {SHA_TAG: sha256, OWNER_TAG: own(site), MODEL_TAG: name} | made_by("kdq run, stage register")
    return mlflow.create_logged_model(experiment, shown, run_id, tags, model_type="onnx")


def link(mlflow: MlflowClient, logged: LoggedModel, name: str, version: int) -> None:
    """Let a logged model name its version; nobody sweeps it any more."""
    mlflow.set_logged_model_tags(
        logged.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": version}])}
    )
    if OWNER_TAG in logged.tags:
        mlflow.delete_logged_model_tag(logged.model_id, OWNER_TAG)


def discard(site: Site, mlflow: MlflowClient, logged: LoggedModel) -> None:
    """Remove a logged model with its files."""
    repository(site, logged.artifact_location).delete_artifacts()
    if logged.artifact_location.startswith("file://"):
        with contextlib.suppress(OSError):
            Path(unquote(urlsplit(logged.artifact_location).path)).parent.rmdir()
    mlflow.delete_logged_model(logged.model_id)


def sweep(site: Site, mlflow: MlflowClient, experiments: Sequence[str]) -> None:
    """Finish or remove what killed registrations of this home left; the caller holds the home's lock."""
    for logged in begun(site, mlflow, experiments):
        name = logged.tags[MODEL_TAG]
        made = by_bytes(mlflow, name, logged.tags[SHA_TAG])
        mine = [version for version in made if version.source == logged.artifact_location]
        if mine and mine[0].version == made[0].version:
            link(mlflow, logged, name, int(mine[0].version))
            continue
        for version in mine:
            mlflow.delete_model_version(name, version.version)
        discard(site, mlflow, logged)
    for run in mlflow.search_runs(list(experiments), f"tags.`{OWNER_TAG}` = '{own(site)}'"):
        if mlflow.search_model_versions(f"run_id = '{run.info.run_id}'", max_results=1):
            mlflow.delete_tag(run.info.run_id, OWNER_TAG)
        else:
            mlflow.set_terminated(run.info.run_id, "KILLED")
            mlflow.delete_run(run.info.run_id)


def begun(site: Site, mlflow: MlflowClient, experiments: Sequence[str]) -> list[LoggedModel]:
    """The logged models that this home has begun and not finished."""
    return list(mlflow.search_logged_models(list(experiments), f"tags.`{OWNER_TAG}` = '{own(site)}'"))


def by_bytes(mlflow: MlflowClient, name: str, sha256: str) -> list[Any]:
    """The versions of a model with these bytes, oldest first; all but the first lost a race and are going."""
    return list(
        mlflow.search_model_versions(
            f"name = '{name}' and tags.`{SHA_TAG}` = '{sha256}'", order_by=["version_number ASC"]
        )
    )


def repository(site: Site, address: str) -> Any:
    """The artifact repository at an address of this site."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(address, tracking_uri=site.mlflow_uri, registry_uri=site.mlflow_uri)


def download(site: Site, mlflow: MlflowClient, version: Any, to: Path) -> Path:
    """Fetch all files of a version into a folder afresh; what cannot be fetched is missing there."""
    from mlflow.exceptions import MlflowException

    files = repository(site, direct(mlflow).get_model_version_download_uri(version.name, version.version))
    try:
        files.download_artifacts("", str(to))
    except (OSError, MlflowException):
        return to  # the seal tells what is missing
    return to
