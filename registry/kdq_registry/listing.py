"""The rows of `kdq models`."""

from __future__ import annotations

import datetime
import math
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kdq_core.store.family import in_json
from kdq_core.store.records import EvaluationReport
from kdq_registry.aliases import repair
from kdq_registry.environment import client, mlflow_errors
from kdq_registry.logged import SHA_TAG
from kdq_registry.registering import REPORT_TAG
from kdq_registry.versions import models, nothing_yet, versions

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site


NEWEST = 50
"""How many of a model's versions are listed, besides those with an alias."""


def list_models(site: Site, *, everything: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """List the versions of every model, newest first within a model, after repairing their aliases.

    Args:
        site: where MLflow is.
        everything: list all versions, not only those with an alias and the 50 newest of each model.

    Returns:
        Rows with `name`, `version`, `aliases`, `created` (UTC), `top1`, `bytes` and `sha256` (12 digits); values that a
            version registered without KDQ lacks are `None`. And one sentence for each alias that KDQ repaired, for each
            chain that is broken, and for each model whose older versions are left out.
    """
    if nothing_yet(site):
        return [], []
    with mlflow_errors(site):
        mlflow = client(site)
        told = [note for model in models(mlflow) for note in repaired(site, mlflow, model.name)]
        found = sorted(models(mlflow), key=lambda model: str(model.name))
        rows = []
        for model in found:
            shown = versions(mlflow, model.name) if everything else _newest(mlflow, model)
            rows += [_row(model, version) for version in shown]
            if not everything and len(shown) >= NEWEST:
                told.append(f"older versions of {model.name!r} are not shown; `kdq models --all` shows them")
        return rows, told


def _newest(mlflow: Any, model: Any) -> list[Any]:
    """The newest versions of a model, and those with an alias."""
    page = list(
        mlflow.search_model_versions(f"name = '{model.name}'", max_results=NEWEST, order_by=["version_number DESC"])
    )
    numbers = {int(version.version) for version in page}
    others = sorted({int(number) for number in model.aliases.values()} - numbers, reverse=True)
    return page + [mlflow.get_model_version(model.name, str(number)) for number in others]


def repaired(site: Site, mlflow: Any, name: str) -> list[str]:
    """Repair the aliases of a model. If KDQ cannot, it tells why, and the caller can still read.

    Returns:
        One sentence for each alias, or for the chain.
    """
    from mlflow.exceptions import MlflowException

    from kdq_core.errors import StageError

    try:
        return repair(site, mlflow, name)
    except StageError as error:
        return [str(error)]
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        return [f"the aliases of {name!r} are not those of its chain of promotions, and you may not repair them"]


def _row(model: Any, version: Any) -> dict[str, Any]:
    try:
        report = EvaluationReport.model_validate_json(version.tags.get(REPORT_TAG, '{"models": {}}'))
    except ValidationError:  # a tag that somebody edited costs this row its figures, and no other row
        report = EvaluationReport(models={})
    top1, size = report.value("int8", "top1"), report.value("int8", "bytes")
    created = datetime.datetime.fromtimestamp(version.creation_timestamp / 1000, datetime.UTC)
    return {
        "name": model.name,
        "version": int(version.version),
        "aliases": sorted(alias for alias, number in model.aliases.items() if int(number) == int(version.version)),
        "created": created.isoformat(timespec="seconds"),
        "top1": None if top1 is None else in_json(top1),
        "bytes": int(size) if size is not None and math.isfinite(size) else None,
        "sha256": version.tags.get(SHA_TAG, "")[:12] or None,
    }
