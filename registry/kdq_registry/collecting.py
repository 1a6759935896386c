"""Remove what nobody needs: versions that were never promoted, and what killed registrations left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdq_core.locks import held
from kdq_registry.chain import everything, on_chain
from kdq_registry.entries import MOVES, wrong_with
from kdq_registry.environment import client, folder, mlflow_errors
from kdq_registry.logged import LOGGED_TAG, MODEL_TAG, begun, discard, sweep
from kdq_registry.scratch import scratch
from kdq_registry.versions import model_named, models, nothing_yet, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site


def collect(site: Site, *, keep: int, delete: bool) -> list[dict[str, Any]]:
    """Find versions without an alias that were never promoted, beyond the newest `keep` of each model, and litter.

    Args:
        site: where MLflow is.
        keep: how many of the newest versions of each model stay in any case.
        delete: remove them; otherwise they are only listed.

    Returns:
        A row for each: `what`, `name`, `version` and `sha256`.
    """
    if nothing_yet(site):
        return []
    rows: list[dict[str, Any]] = []
    with mlflow_errors(site), held(folder(site) / ".register.lock"), scratch(site):
        mlflow = client(site)
        experiments = [str(one.experiment_id) for one in mlflow.search_experiments()]
        left = begun(site, mlflow, experiments)
        rows += [_row("unfinished registration", one.tags[MODEL_TAG], None, one.tags) for one in left]
        if delete:
            sweep(site, mlflow, experiments)
        for model in models(mlflow):
            for version in _unused(mlflow, model.name, keep):
                rows.append(_row("version", model.name, int(version.version), version.tags))
                if delete:
                    mlflow.delete_model_version(model.name, version.version)
                    discard(site, mlflow, mlflow.get_logged_model(version.tags[LOGGED_TAG]))
    return rows


def _unused(mlflow: MlflowClient, name: str, keep: int) -> list[Any]:
    """Versions that KDQ registered, that no alias means and no entry of the chain moved an alias to."""
    chain = on_chain(name, [row for row in everything(mlflow, name) if not wrong_with(name, row.tags)])
    used = {link.entry.to for link in chain if link.entry.kind in MOVES}
    used |= {int(number) for number in model_named(mlflow, name).aliases.values()}
    return [
        version
        for version in versions(mlflow, name)[keep:]
        if LOGGED_TAG in version.tags and int(version.version) not in used
    ]


def _row(what: str, name: str, version: int | None, tags: dict[str, str]) -> dict[str, Any]:
    return {"what": what, "name": name, "version": version, "sha256": tags.get("kdq.sha256", "")[:12] or None}
