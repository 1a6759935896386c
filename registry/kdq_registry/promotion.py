"""Move an alias: bless the version, judge it, ask the plug-ins, write the chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError, StageError, did_you_mean
from kdq_core.frozen import Frozen
from kdq_core.plan.gates import GateVerdict
from kdq_core.store.records import EvaluationReport
from kdq_registry.aliases import ALIASES, CHALLENGER, CHAMPION, PREVIOUS, repair, settle, state_of
from kdq_registry.blessing import Blessed, bless, read
from kdq_registry.chain import head
from kdq_registry.comparing import Comparison
from kdq_registry.environment import client, mlflow_errors
from kdq_registry.judging import Judgement, judged
from kdq_registry.moving import move, refuse
from kdq_registry.policy import Policy, check_metrics
from kdq_registry.versions import nothing_yet, unknown_model, version_numbered

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site
    from kdq_registry.entries import Aliases, Kind, Link

Vetoes = Callable[[str, int, EvaluationReport], Iterable[str]]
TARGETS = (CHAMPION, CHALLENGER)
"""The aliases that a promotion may move; `previous` follows `champion`."""


class Moved(Frozen):
    """What became of an alias beside the one that was asked for; equal ends say that it stayed."""

    alias: str
    before: int | None
    after: int | None


class PromotionResult(Frozen):
    """Whether the version has the alias, and why; if `before` is another version, the alias moved."""

    name: str
    version: int
    alias: str = CHAMPION
    kind: str = "move"
    promoted: bool
    before: int | None
    verdicts: tuple[GateVerdict, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    against: tuple[str, ...] = ()
    vetoes: tuple[str, ...] = ()
    entry: str = ""
    others: tuple[Moved, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def already(self) -> bool:
        """Say whether the version had the alias before."""
        return self.before == self.version


def promote(
    site: Site,
    name: str,
    version: int,
    *,
    alias: str = CHAMPION,
    policy: Policy | None = None,
    force: str = "",
    vetoes: Vetoes | None = None,
) -> PromotionResult:
    """Move an alias of model `name` to `version`, if its files are as sealed, its gates are met, and no plug-in vetoes.

    A version that is shown to be worse than the champion is refused, too. The function appends the move, or the
    refusal, to the model's chain of promotions. If the version has the alias already, it moves and writes nothing.

    Args:
        site: where MLflow is, and whose key signs.
        name: name of the registered model.
        version: number of the version.
        alias: `champion`, or `challenger`, which asks for whole files and answers only.
        policy: gates in place of the sealed ones, trusted signers, and what to compare.
        force: the reason to promote although gates are not met or the version is worse; damaged files and vetoes stand.
        vetoes: called last, with name, version and report; each reason that it returns forbids the promotion.

    Raises:
        RecipeError: there is no such model, version or alias, the version is the champion and is to be its own
            challenger, or the policy asks for a metric that nobody measured.
        TransientError: the tracking server cannot be reached.
        StageError: MLflow refused, or a file of the version or an entry of the chain was changed.
        LostError: another process moved the alias at the same moment.
    """
    check_alias(alias)
    rules = policy or Policy()
    with mlflow_errors(site):
        mlflow, notes, seen, before = _begun(site, name, version)
        _check_challenger(name, version, alias, before)
        blessed = _blessed(site, mlflow, name, version, alias, rules)
        judgement = Judgement()
        if alias == CHAMPION and before.get(CHAMPION) != version:
            check_metrics(rules.gates or (), blessed.sealed.report, name, version)
            judgement = judged(rules, blessed, *_champion(site, mlflow, name, before.get(CHAMPION)))
        elif alias == CHAMPION:
            judgement = judged(rules.model_copy(update={"compare": ()}), blessed, None, "")
    reasons = tuple(vetoes(name, version, blessed.sealed.report)) if vetoes else ()
    result = PromotionResult(
        name=name, version=version, alias=alias, kind="force" if judgement.against and force else "move",
        promoted=not reasons and (not judgement.against or bool(force)), before=before.get(alias),
        verdicts=judgement.verdicts, comparisons=judgement.comparisons, against=judgement.against, vetoes=reasons,
        notes=(*notes, *filter(None, [judgement.note])),
    )  # fmt: skip
    return _written(site, mlflow, result, seen, before, blessed, force, rules if policy else None)


def rollback(
    site: Site, name: str, *, reason: str = "", policy: Policy | None = None, vetoes: Vetoes | None = None
) -> PromotionResult:
    """Make `previous` the champion again, after its files were looked at as in a promotion; the champion is `previous`.

    Args:
        site: where MLflow is, and whose key signs.
        name: name of the registered model.
        reason: stays in the history.
        policy: its signers count; gates and comparison do not, because the version was champion before.
        vetoes: called last, with name, version and report; each reason that it returns forbids the rollback.

    Raises:
        RecipeError: there is no such model, or it has no `previous`.
        StageError: MLflow refused, or a file of the version or an entry of the chain was changed.
        LostError: another process moved the alias at the same moment.
    """
    with mlflow_errors(site):
        mlflow, notes, seen, before = _begun(site, name, None)
        if PREVIOUS not in before:
            raise RecipeError(
                f"model {name!r} has no 'previous' to roll back to; `kdq models` lists its versions, and `kdq promote "
                f"{name} VERSION` makes one of them the champion"
            )
        version = before[PREVIOUS]
        blessed = _blessed(site, mlflow, name, version, CHAMPION, policy or Policy())
    reasons = tuple(vetoes(name, version, blessed.sealed.report)) if vetoes else ()
    result = PromotionResult(
        name=name, version=version, kind="rollback", promoted=not reasons, before=before.get(CHAMPION), vetoes=reasons,
        notes=notes,
    )  # fmt: skip
    return _written(site, mlflow, result, seen, before, blessed, reason, policy)


def check_alias(alias: str) -> None:
    """Refuse an alias that a promotion does not move.

    Raises:
        RecipeError: with the nearest one.
    """
    if alias not in TARGETS:
        raise RecipeError(
            f"a promotion moves 'champion' or 'challenger', not {alias!r}{did_you_mean(alias, TARGETS)}; 'previous' "
            "follows 'champion'"
        )


def _check_challenger(name: str, version: int, alias: str, before: Aliases) -> None:
    if alias == CHALLENGER and before.get(CHAMPION) == version:
        raise RecipeError(
            f"version {version} of {name!r} is its champion, and a challenger is tried beside the champion; name "
            "another version, or make another one champion first"
        )


def _begun(site: Site, name: str, version: int | None) -> tuple[MlflowClient, tuple[str, ...], Link | None, Aliases]:
    """A client, what was repaired, the head of the chain, and the aliases that it says."""
    if nothing_yet(site):
        raise unknown_model(name, [])
    mlflow = client(site)
    if version is not None:
        version_numbered(mlflow, name, version)
    notes = tuple(repair(site, mlflow, name))
    seen = head(mlflow, name)
    return mlflow, notes, seen, state_of(mlflow, name, seen)


def _blessed(site: Site, mlflow: MlflowClient, name: str, version: int, alias: str, policy: Policy) -> Blessed:
    """Bless a version; a refusal is written into the chain."""
    try:
        return bless(site, mlflow, version_numbered(mlflow, name, version), signers=policy.signers)
    except StageError as error:
        refuse(site, mlflow, name, alias=alias, to=version, reason=str(error))
        raise


def _champion(site: Site, mlflow: MlflowClient, name: str, number: int | None) -> tuple[Blessed | None, str]:
    """The champion to compare with; a damaged one is no reason to keep it."""
    if number is None:
        return None, ""
    try:
        return read(site, mlflow, version_numbered(mlflow, name, number)), ""
    except (StageError, RecipeError) as error:
        return None, f"undecided: the champion, version {number}, cannot be read: {error}"


def _written(
    site: Site, mlflow: MlflowClient, result: PromotionResult, seen: Link | None, before: Aliases, blessed: Blessed,
    reason: str, policy: Policy | None,
) -> PromotionResult:  # fmt: skip
    """Write a result into the chain, and move the alias."""
    fields = {
        "seal": blessed.sealed.digest,
        "report": blessed.sealed.seal.report_sha256,
        "policy": policy.digest if policy else "",
    }
    said = "; ".join((*([reason] if reason else []), *result.against, *(f"veto: {veto}" for veto in result.vetoes)))
    where = {"name": result.name, "alias": result.alias, "to": result.version, "reason": said}
    kind: Kind = result.kind  # type: ignore[assignment]
    with mlflow_errors(site):
        if not result.promoted:
            link = refuse(site, mlflow, **where, **fields)  # type: ignore[arg-type]
        elif result.already:
            settle(mlflow, result.name)
            return result
        else:
            link = move(site, mlflow, seen=seen, kind=kind, **where, **fields)  # type: ignore[arg-type]
    after = link.entry.aliases
    others = [Moved(alias=one, before=before.get(one), after=after.get(one)) for one in ALIASES if one != result.alias]
    told = tuple(one for one in others if one.before != one.after or (one.alias == CHALLENGER and one.before))
    return result.model_copy(update={"entry": link.digest, "others": told if result.promoted else ()})
