"""Move an alias if every gate is met and no plug-in vetoes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from kdq_core.errors import KdqError, RecipeError, StageError
from kdq_core.frozen import Frozen
from kdq_core.plan.gates import GateVerdict, judge
from kdq_core.recipe.spec import Gate
from kdq_core.store.records import EvaluationReport
from kdq_registry.aliases import CHAMPION, repair, settle, state_of
from kdq_registry.blessing import bless
from kdq_registry.chain import head
from kdq_registry.environment import client, mlflow_errors
from kdq_registry.moving import move, refuse
from kdq_registry.registering import GATES_TAG, REPORT_TAG
from kdq_registry.versions import nothing_yet, unknown_model, version_numbered

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site

Vetoes = Callable[[str, int, EvaluationReport], Iterable[str]]


class PromotionResult(Frozen):
    """Whether the version has the alias, and why; if `before` is another version, the alias moved."""

    name: str
    version: int
    alias: str = CHAMPION
    promoted: bool
    before: int | None
    verdicts: tuple[GateVerdict, ...] = ()
    vetoes: tuple[str, ...] = ()
    entry: str = ""
    notes: tuple[str, ...] = ()

    @property
    def already(self) -> bool:
        """Say whether the version had the alias before."""
        return self.before == self.version


def promote(site: Site, name: str, version: int, *, vetoes: Vetoes | None = None) -> PromotionResult:
    """Move the alias `champion` of model `name` to `version`, if its files are whole and its gates are met.

    The function appends the move, or the refusal, to the model's chain of promotions. If the version is `champion`
    already, it moves and writes nothing.

    Args:
        site: where MLflow is.
        name: name of the registered model.
        version: number of the version.
        vetoes: called last, with name, version and report; each reason that it returns forbids the promotion.

    Raises:
        RecipeError: there is no such model or version, or KDQ did not register it.
        TransientError: the tracking server cannot be reached.
        StageError: MLflow refused, or a file or a tag of the version or an entry of the chain was changed.
        LostError: another process moved the alias at the same moment.
    """
    if nothing_yet(site):
        raise unknown_model(name, [])
    with mlflow_errors(site):
        mlflow = client(site)
        found = version_numbered(mlflow, name, version)
        notes = tuple(repair(site, mlflow, name))
        seen = head(mlflow, name)
        before = state_of(mlflow, name, seen).get(CHAMPION)
        try:
            gates, report = _claims(name, version, found.tags)
            bless(site, mlflow, found)
        except KdqError as error:
            refuse(site, mlflow, name, alias=CHAMPION, to=version, reason=str(error))
            raise
    verdicts = judge(gates, report)
    reasons = tuple(vetoes(name, version, report)) if vetoes else ()
    result = PromotionResult(
        name=name, version=version, promoted=all(verdict.met for verdict in verdicts) and not reasons, before=before,
        verdicts=verdicts, vetoes=reasons, notes=notes,
    )  # fmt: skip
    with mlflow_errors(site):
        if not result.promoted:
            link = refuse(site, mlflow, name, alias=CHAMPION, to=version, reason="; ".join(_against(result)))
        elif result.already:
            settle(mlflow, name)
            return result
        else:
            link = move(site, mlflow, name, seen, kind="move", alias=CHAMPION, to=version)
    return result.model_copy(update={"entry": link.digest})


def _against(result: PromotionResult) -> list[str]:
    """The reasons of a refusal, in words."""
    unmet = [f"{v.rule} is not met ({v.note or v.value})" for v in result.verdicts if not v.met]
    return unmet + [f"veto: {reason}" for reason in result.vetoes]


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
