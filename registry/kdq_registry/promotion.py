"""Move the alias `champion` if every gate of the recipe is met and no plug-in vetoes."""

from __future__ import annotations

import datetime
import getpass
import json
import math
import os
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from kdq_core.errors import RecipeError, StageError
from kdq_core.frozen import Frozen
from kdq_core.locks import held
from kdq_core.plan.gates import GateVerdict, judge
from kdq_core.recipe.spec import Gate
from kdq_core.store.family import in_json
from kdq_core.store.records import EvaluationReport
from kdq_registry.blessing import bless
from kdq_registry.environment import client, folder, mlflow_errors
from kdq_registry.registering import GATES_TAG, REPORT_TAG
from kdq_registry.versions import SHA_TAG, model_named, models, nothing_yet, unknown_model, version_numbered, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site

ALIAS = "champion"
PROMOTION_TAG = "kdq.promotion"

Vetoes = Callable[[str, int, EvaluationReport], Iterable[str]]


class PromotionResult(Frozen):
    """Whether the version may be `champion`, and why; if `previous` is another version, the alias moved."""

    name: str
    version: int
    promoted: bool
    previous: int | None
    verdicts: tuple[GateVerdict, ...]
    vetoes: tuple[str, ...] = ()

    @property
    def already(self) -> bool:
        """Say whether the version was `champion` before."""
        return self.previous == self.version


def promote(site: Site, name: str, version: int, *, vetoes: Vetoes | None = None) -> PromotionResult:
    """Move the alias `champion` of model `name` to `version`, if its files are whole and its gates are met.

    The function writes the move to `KDQ_HOME/mlflow/promotions.jsonl` and into a tag of the version. If the version is
    `champion` already, it moves and writes nothing.

    Args:
        site: where MLflow is.
        name: name of the registered model.
        version: number of the version.
        vetoes: called last, with name, version and report; each reason that it returns forbids the promotion.

    Raises:
        RecipeError: there is no such model or version, or KDQ did not register it.
        TransientError: the tracking server cannot be reached.
        StageError: MLflow refused, a file or a tag of the version was changed, or another process moved the alias at
            the same moment.
    """
    if nothing_yet(site):
        raise unknown_model(name, [])
    with mlflow_errors(site):
        mlflow = client(site)
        found = version_numbered(mlflow, name, version)
        gates, report = _claims(name, version, found.tags)
        bless(site, mlflow, found)
    verdicts = judge(gates, report)
    reasons = tuple(vetoes(name, version, report)) if vetoes else ()
    promoted = all(verdict.met for verdict in verdicts) and not reasons
    with mlflow_errors(site), held(folder(site) / ".promote.lock"):
        head = model_named(mlflow, name).aliases.get(ALIAS)
        result = PromotionResult(
            name=name,
            version=version,
            promoted=promoted,
            previous=None if head is None else int(head),
            verdicts=verdicts,
            vetoes=reasons,
        )
        if promoted and not result.already:
            _move(site, mlflow, result)
    return result


def list_models(site: Site) -> list[dict[str, Any]]:
    """List every version of every model, newest first within a model.

    Returns:
        Rows with `name`, `version`, `aliases`, `created` (UTC), `top1`, `bytes` and `sha256` (12 digits). Values
            that a version registered without KDQ lacks are `None`.
    """
    if nothing_yet(site):
        return []
    with mlflow_errors(site):
        mlflow = client(site)
        found = sorted(models(mlflow), key=lambda model: str(model.name))
        return [_row(model, version) for model in found for version in versions(mlflow, model.name)]


def _claims(name: str, version: int, tags: dict[str, str]) -> tuple[tuple[Gate, ...], EvaluationReport]:
    """Gates and report that `register` left in the version's tags."""
    if GATES_TAG not in tags or REPORT_TAG not in tags:
        raise RecipeError(
            f"version {version} of model {name!r} has no tags {GATES_TAG!r} and {REPORT_TAG!r}: KDQ did not register "
            "it, so its gates cannot be checked; register it with `kdq run`"
        )
    try:
        gates = TypeAdapter(tuple[Gate, ...]).validate_json(tags[GATES_TAG])
        report = EvaluationReport.model_validate_json(tags[REPORT_TAG])
    except ValidationError as error:
        raise StageError(
            f"version {version} of model {name!r} has a damaged tag {GATES_TAG!r} or {REPORT_TAG!r} "
            f"({error.errors()[0]['msg']}), so its gates cannot be checked; run its recipe again: that writes both anew"
        ) from None
    if not gates:
        raise RecipeError(
            f"version {version} of model {name!r} has no gates, so nothing says that it is good enough; write 'gates' "
            "into its recipe and run it again"
        )
    return gates, report


def _move(site: Site, mlflow: MlflowClient, result: PromotionResult) -> None:
    """Set the alias, read it back, and write who did it and why it was allowed."""
    mlflow.set_registered_model_alias(result.name, ALIAS, str(result.version))
    head = int(mlflow.get_model_version_by_alias(result.name, ALIAS).version)
    if head != result.version:
        raise StageError(
            f"the alias {ALIAS!r} of model {result.name!r} was to be version {result.version}, and another process "
            f"moved it to version {head} at the same moment; look at `kdq models` and promote again"
        )
    line = json.dumps(
        {
            "who": f"{_user()}@{socket.gethostname()}",
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "model": result.name,
            "from": result.previous,
            "to": result.version,
            "verdicts": [verdict.model_dump(mode="json") for verdict in result.verdicts],
        }
    )
    mlflow.set_model_version_tag(result.name, str(result.version), PROMOTION_TAG, line)
    with (folder(site) / "promotions.jsonl").open("a", encoding="utf-8") as audit:
        audit.write(line + "\n")
        audit.flush()
        os.fsync(audit.fileno())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # a container without an entry in passwd


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
