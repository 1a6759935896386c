"""`kdq promote` and `kdq rollback`: move an alias."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import JsonFlag
from kdq_flows.cli.models import ModelName, PolicyFile

if TYPE_CHECKING:
    from kdq_core.store.records import EvaluationReport
    from kdq_registry.promotion import PromotionResult


def promote(
    name: ModelName,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Number of the version.")],
    to: Annotated[
        str, typer.Option(metavar="ALIAS", help="champion, challenger, or MODEL@ALIAS to copy it to another model.")
    ] = "champion",
    policy: PolicyFile = None,
    force: Annotated[bool, typer.Option("--force", help="Promote although it is refused; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; it stays in the history.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make a version `champion` if its files are as sealed and its gates are met; list every gate."""
    from kdq_core.errors import RecipeError, did_you_mean
    from kdq_registry.copying import copy_version
    from kdq_registry.policy import read_policy
    from kdq_registry.promotion import TARGETS, check_alias
    from kdq_registry.promotion import promote as promote_version
    from kdq_registry.signing import signer_of

    if force != bool(reason.strip()):
        raise RecipeError(
            "--force needs --reason TEXT, which stays in the history"
            if force
            else "--reason says why a promotion is forced; add --force, or leave it out"
        )
    rules = None if policy is None else read_policy(policy)
    model, _, alias = to.rpartition("@")
    if not model and alias not in TARGETS and not did_you_mean(alias, TARGETS):
        raise RecipeError(
            f"--to {to!r} is no alias; write champion, challenger, or {to}@champion to copy the version into the model "
            f"{to!r}"
        )
    check_alias(alias)
    site = common.site()
    signer_of(site)  # refuses a wrong key before anything is written
    if model and model != name:
        copied = copy_version(site, name, version, model)
        common.say(f"version {version} of {name!r} is version {copied} of {model!r}", err=True)
        name, version = model, copied
    result = promote_version(site, name, version, alias=alias, policy=rules, force=reason, vetoes=_vetoes)
    _finish(result, as_json=as_json)


def rollback(
    name: ModelName,
    policy: PolicyFile = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; it stays in the history.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make `previous` the champion again, if its files are as sealed; the champion becomes `previous`."""
    from kdq_registry.policy import read_policy
    from kdq_registry.promotion import rollback as roll_back

    rules = None if policy is None else read_policy(policy)
    _finish(roll_back(common.site(), name, reason=reason, policy=rules, vetoes=_vetoes), as_json=as_json)


def register_commands(app: typer.Typer) -> None:
    """Add `kdq promote` and `kdq rollback`."""
    app.command("promote", rich_help_panel="Registry")(promote)
    app.command("rollback", rich_help_panel="Registry")(rollback)


def _vetoes(name: str, version: int, report: EvaluationReport) -> list[str]:
    from kdq_core.plugins.catalog import Catalog

    with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints
        answers = Catalog.load().lifecycle("kdq_before_promotion", name=name, version=version, report=report)
    return [str(reason) for reasons in answers for reason in reasons or ()]


def _finish(result: PromotionResult, *, as_json: bool) -> None:
    """Tell the result, and the plug-ins if an alias moved."""
    from kdq_core.plugins.catalog import Catalog

    if result.promoted and not result.already:
        with contextlib.redirect_stdout(sys.stderr):
            Catalog.load().lifecycle(
                "kdq_after_promotion", name=result.name, version=result.version, alias=result.alias,
                before=result.before, kind=result.kind, entry=result.entry,
            )  # fmt: skip
    common.notes(result.notes)
    if as_json:
        typer.echo(json.dumps(result.model_dump(mode="json"), indent=2))
    else:
        _tell(result)
    if not result.promoted:
        raise typer.Exit(1)


def _tell(result: PromotionResult) -> None:
    rows: list[dict[str, object]] = [
        {
            "gate": v.rule,
            "value": v.value,
            "bound": v.note if v.bound is None else v.bound,
            "verdict": "met" if v.met else "not met",
        }
        for v in result.verdicts
    ]
    rows += [{"gate": reason, "verdict": "veto"} for reason in result.vetoes]
    if rows:
        common.show(rows, title=f"Gates of {result.name} version {result.version}", as_json=False)
    if result.comparisons:
        common.show(_compared(result), title=f"Against the champion, version {result.before}", as_json=False)
    before = f"version {result.before}" if result.before else "nothing"
    if result.promoted and result.already:
        typer.echo(f"{result.alias!r} of {result.name!r} is version {result.version} already; nothing was changed")
        return
    for reason in result.against:
        common.say(f"{'forced although' if result.promoted else 'refused:'} {reason}")
    if result.promoted:
        typer.echo(f"{result.alias!r} of {result.name!r} is now version {result.version}; before: {before}")
        for line in _others(result):
            typer.echo(line)
    else:
        typer.echo(f"not promoted: {result.alias!r} of {result.name!r} stays at {before}")


def _others(result: PromotionResult) -> Iterator[str]:
    """What became of the other aliases."""
    for one in result.others:
        if one.before == one.after:
            yield f"{one.alias!r} stays at version {one.after}"
        elif one.after is None:
            why = f"is {result.alias!r} now" if one.before == result.version else "was deleted"
            yield f"{one.alias!r} is now nothing; before: version {one.before}, which {why}"
        else:
            before = f"version {one.before}" if one.before else "nothing"
            yield f"{one.alias!r} is now version {one.after}; before: {before}"


def _compared(result: PromotionResult) -> list[dict[str, object]]:
    return [
        {
            "metric": one.metric,
            "version": one.version,
            "champion": one.champion,
            "difference": f"{one.difference:+.4g} ({one.low:+.4g} to {one.high:+.4g})",
            "p": "" if one.p is None else f"{one.p:.2g}",
            "samples": one.samples,
            "test": one.test,
            "verdict": one.verdict,
        }
        for one in result.comparisons
    ]
