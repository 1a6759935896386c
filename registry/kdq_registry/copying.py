"""Copy a version into another registered model, files, seal and all, such as `staging.x` into `prod.x`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError, StageError
from kdq_core.locks import held
from kdq_registry.blessing import checked
from kdq_registry.environment import client, folder, mlflow_errors
from kdq_registry.experiments import experiment_id
from kdq_registry.logged import LOGGED_TAG, OWNER_TAG, SHA_TAG, by_bytes, download, new_logged, own_run, sweep
from kdq_registry.registering import add_version
from kdq_registry.scratch import scratch
from kdq_registry.seal import SEAL_TAG
from kdq_registry.versions import CHAIN_SUFFIX, is_chain, nothing_yet, unknown_model, version_numbered

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site

COPIED_TAG = "kdq.copied_from"


def copy_version(site: Site, name: str, version: int, to: str) -> int:
    """Copy a version into the model `to`, byte for byte; the same bytes are copied once.

    Returns:
        The number of the version in `to`.

    Raises:
        RecipeError: there is no such model or version, or `to` is no name for a model.
        StageError: the version's files are not as sealed, or `to` has the same model with another seal.
    """
    if nothing_yet(site):
        raise unknown_model(name, [])
    if is_chain(to) or not to:
        raise RecipeError(
            f"a version cannot be copied into {to!r}: names that end in {CHAIN_SUFFIX!r} are histories; name another"
        )
    with mlflow_errors(site), held(folder(site) / ".register.lock"), scratch(site) as path:
        mlflow = client(site)
        found = version_numbered(mlflow, name, version)
        try:
            sealed = checked(download(site, mlflow, found, path), found.tags)
        except StageError as error:
            raise StageError(f"version {version} of model {name!r} cannot be copied: {error}") from None
        experiment = experiment_id(mlflow, site, to)
        sweep(site, mlflow, [experiment])
        for there in by_bytes(mlflow, to, found.tags[SHA_TAG])[:1]:
            if there.tags.get(SEAL_TAG) == sealed.digest:
                return int(there.version)
            raise StageError(
                f"version {there.version} of model {to!r} has the same bytes as version {version} of {name!r}, and "
                f"another seal (other gates, report or origin); promote that one, or delete it and copy again"
            )
        run = own_run(site, mlflow, experiment, to)
        logged = new_logged(site, mlflow, experiment, to, run, found.tags[SHA_TAG])
        mlflow.log_model_artifacts(logged.model_id, str(path))
        mlflow.finalize_logged_model(logged.model_id, "READY")
        tags = {tag: value for tag, value in found.tags.items() if tag.startswith("kdq.") and tag != LOGGED_TAG}
        tags |= {COPIED_TAG: f"{name}/{version}"}
        made = add_version(site, mlflow, to, logged, run, tags, found.description or "")
        mlflow.delete_tag(run, OWNER_TAG)
        return int(made.version)
