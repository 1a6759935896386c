"""Find the lock of a run or of a version in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError, StageError
from kdq_registry.blessing import checked
from kdq_registry.environment import client, mlflow_errors
from kdq_registry.logged import download
from kdq_registry.page import LOCK
from kdq_registry.pulling import find
from kdq_registry.scratch import scratch
from kdq_registry.versions import nothing_yet

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site


def lock_of_version(site: Site, model: str) -> bytes:
    """Fetch the sealed lock of a version.

    Args:
        site: where MLflow is.
        model: `NAME/VERSION` or `NAME@ALIAS`.

    Raises:
        RecipeError: there is no such version, or it has no lock.
        TransientError: the tracking server cannot be reached.
        StageError: a file of the version is not as sealed.
    """
    with mlflow_errors(site):
        mlflow, version, _ = find(site, model)
        with scratch(site) as path:
            try:
                checked(download(site, mlflow, version, path), version.tags)
            except StageError as error:
                raise StageError(
                    f"version {version.version} of model {version.name!r} cannot be replayed: {error}"
                ) from None
            if (path / LOCK).is_file():
                return (path / LOCK).read_bytes()
    raise RecipeError(
        f"version {version.version} of model {version.name!r} has no lock: no run of `kdq run` registered it; name "
        "another version, or a lock that `kdq lock` wrote"
    )


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
        with scratch(site) as path:
            return Path(mlflow.download_artifacts(run_id, LOCK, str(path))).read_bytes()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return None
