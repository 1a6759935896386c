"""How commands show the branches of a study."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kdq_flows.cli import common

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kdq_core.plan.study import StudyPlan
    from kdq_core.reading.studies import Study
    from kdq_core.recipe.spec import Recipe
    from kdq_core.store.store import Store
    from kdq_flows.facts.result import RunResult
    from kdq_flows.facts.study import BranchFacts

SHOWN = ("bytes", "latency_p50_ms", "speedup")
"""Metrics of the int8 file that the table shows beside its quality, if they were measured."""


def show_branches(result: RunResult) -> None:
    """Print a table of the branches, and which of them was selected."""
    states = Counter(one.status for one in result.branches)
    told = ", ".join(f"{number} {state}" for state, number in states.items())
    rows = [_row(one, result) for one in result.branches]
    common.show(rows, title=f"{result.run}: {len(rows)} branches ({told}) in {result.seconds:.1f} s", as_json=False)
    for one in result.branches:
        if one.error:
            common.say(f"failed    {one.branch}: {one.error}")
    if result.selected and result.selected.branch:
        common.say(f"selected  {result.selected.verdict}")
    elif result.selected is None:
        common.say("selected  none, since the recipe has no 'select'")


def numbered(study: Study) -> str:
    """How many branches a study has; those of a search are not known before it runs."""
    if study.example is not None:
        return f"a search, shown by its branch {study.example.name}"
    return f"{len(study.branches)} branches"


def _row(one: BranchFacts, result: RunResult) -> dict[str, object]:
    mark = "" if result.selected is None else result.selected.mark(one.branch)
    values = one.models.get("int8", {})
    quality = next(iter(values), None)
    shown = {name: f"{values[name]:.6g}" for name in dict.fromkeys([quality, *SHOWN]) if name in values}
    version = f"{one.version.name} {one.version.version}" if one.version else ""
    return {"branch": one.branch, "": mark, "status": one.status, **shown, "version": version}


def plan_rows(plan: StudyPlan, store: Store, *, as_json: bool) -> list[dict[str, object]]:
    """A row for each node of a study: whom it serves, whether it is cached, and why not."""
    from kdq_core.plan.forecast import forecast_study

    rows: list[dict[str, object]] = []
    titles: dict[str, str] = {}
    for one, line in forecast_study(plan, store):
        titles[one.identity] = one.node.name
        serves = list(one.branches) if as_json else str(len(one.branches)) if len(one.branches) > 1 else one.branches[0]
        rows.append({
            "stage": one.node.name,
            "branches": serves,
            "after": ", ".join(titles[parent] for parent in one.parents),
            "state": line.state,
            "key": line.key if as_json or line.key is None else line.key[:12],
            "why": line.why,
        })  # fmt: skip
    return rows


def show_part(found: Recipe | Study, part: Mapping[str, tuple[str, ...]], *, as_json: bool) -> None:
    """Print what a run of a part of the plan would do with each stage of it."""
    from kdq_core.plan.forecast import forecast_study
    from kdq_core.plan.part import Part, check_reads
    from kdq_core.store import open_store
    from kdq_flows.planning import planned

    here, asked = common.site(), Part(**part)
    plan = planned(found, here, lambda text: common.say(text, err=True))
    plans = {branch.name if len(plan.branches) > 1 else "": branch for branch in plan.branches}
    asked.check({title: branch.plan for title, branch in plans.items()})
    wanted, fresh = set[str](), set[str]()
    for title, branch in plans.items():
        wanted |= {branch.identities[name] for name in asked.wanted(branch.plan, title)}
        fresh |= {branch.identities[node.name] for node in asked.refreshed(branch.plan, title)}
    rows: list[dict[str, object]] = []
    lines = list(forecast_study(plan, open_store(here)))
    kept = {one.identity for one, line in lines if line.state == "cached"} - fresh
    for title, branch in plans.items():
        left_out = {node.name for node in branch.plan.nodes} - asked.wanted(branch.plan, title)
        check_reads(branch.plan, left_out, left_out, {name for name, one in branch.identities.items() if one in kept})
    for one, line in lines:
        if one.identity in wanted:
            state = "run" if one.identity in fresh or line.state != "cached" else "cached"
            several = {"branches": ", ".join(one.branches)} if len(plan.branches) > 1 else {}
            rows.append({"stage": one.node.name, **several, "state": state})
    common.show(rows, title="What would run", as_json=as_json)
