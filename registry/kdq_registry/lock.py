"""Find the lock of a run or of a version in MLflow."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError
from kdq_registry.environment import client, folder, mlflow_errors
from kdq_registry.page import LOCK
from kdq_registry.versions import nothing_yet, unknown_model, version_called, version_numbered

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site


def lock_of_version(site: Site, model: str) -> bytes:
    """Fetch the lock of the run that made a version.

    Args:
        site: where MLflow is.
        model: `NAME/VERSION` or `NAME@ALIAS`.

    Raises:
        RecipeError: there is no such version, or its run kept no lock.
        TransientError: the tracking server cannot be reached.
    """
    name, mark, which = model.partition("/") if "/" in model else model.partition("@")
    if nothing_yet(site):
        raise unknown_model(name, [])
    with mlflow_errors(site):
        mlflow = client(site)
        if mark == "/" and not which.isdigit():
            raise RecipeError(f"{model!r} names no version; write NAME/NUMBER or NAME@ALIAS")
        found = version_numbered(mlflow, name, int(which)) if mark == "/" else version_called(mlflow, name, which)
        text = _artifact(site, mlflow, found.run_id) if found.run_id else None
    if text is None:
        raise RecipeError(
            f"version {found.version} of model {name!r} has no lock: its run has none, or is gone; run its recipe again"
        )
    return text


def lock_of_run(site: Site, name: str) -> bytes | None:
    """Fetch the lock of a run by its name or its id in MLflow; `None` if MLflow has no such run, or no lock of it."""
    if nothing_yet(site):
        return None
    quoted = name.replace("'", "")
    with mlflow_errors(site):
        mlflow = client(site)
        experiments = [one.experiment_id for one in mlflow.search_experiments()]
        for asked in ("attributes.run_name", "attributes.run_id"):
            for run in mlflow.search_runs(experiments, f"{asked} = '{quoted}'", max_results=1):
                return _artifact(site, mlflow, run.info.run_id)
    return None


def _artifact(site: Site, mlflow: MlflowClient, run_id: str) -> bytes | None:
    from mlflow.exceptions import MlflowException

    try:
        if not any(one.path == LOCK for one in mlflow.list_artifacts(run_id)):
            return None
        with tempfile.TemporaryDirectory(dir=folder(site)) as scratch:
            return Path(mlflow.download_artifacts(run_id, LOCK, scratch)).read_bytes()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return None
