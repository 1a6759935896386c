"""MLflow experiments: one per recipe name, made once, with its files below KDQ_HOME."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdq_core.errors import StageError
from kdq_registry.environment import folder, is_server

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site


KIND_TAG = "mlflow.experimentKind"
TRAINING = "custom_model_development"
"""The kind of KDQ's experiments; where MLflow's page asks for it, it opens them as model training."""


def experiment_id(mlflow: MlflowClient, site: Site, name: str) -> str:
    """Return the id of the experiment `name`; make the experiment if it is missing.

    Args:
        mlflow: a client of the site.
        site: with a database, artifacts go to `KDQ_HOME/mlflow/artifacts/<name>`; a server chooses the place.
        name: the recipe's name.

    Raises:
        StageError: the experiment was deleted in MLflow, which still keeps its name.
    """
    from mlflow.exceptions import MlflowException

    found = mlflow.get_experiment_by_name(name)
    if found is None:
        server = is_server(site.mlflow_uri)  # without a place, MLflow would use ./mlruns for a database
        try:
            place = None if server else (folder(site) / "artifacts" / name).as_uri()
            return str(mlflow.create_experiment(name, place, tags={KIND_TAG: TRAINING}))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = mlflow.get_experiment_by_name(name)  # another process made it first
    if found is None or found.lifecycle_stage != "active":
        raise StageError(
            f"the MLflow experiment {name!r} was deleted, and its name is still taken; restore it "
            f"(`mlflow experiments restore`), or give the recipe another name"
        )
    if KIND_TAG not in found.tags:
        mlflow.set_experiment_tag(found.experiment_id, KIND_TAG, TRAINING)
    return str(found.experiment_id)
