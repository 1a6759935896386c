"""Plans a recipe with or without branches on a site, without running anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kdq_core.plan.advice import hints, learned
from kdq_core.plan.forecast import forecast
from kdq_core.plan.keys import Memo
from kdq_core.plan.plan import Plan, asked_of, make_plan
from kdq_core.plan.study import PlannedBranch, StudyPlan
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.studies import Branch, Study
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store import open_store
from kdq_flows.run.shared import Shared
from kdq_flows.run.teachers import resolved

if TYPE_CHECKING:
    from kdq_registry.fetching import Fetched


def planned(found: Recipe | Study, site: Site, tell: Callable[[str], None]) -> StudyPlan:
    """Plan every branch; a recipe without branches is one branch of its own name.

    Args:
        found: the recipe.
        site: where it would run.
        tell: called with what a registered teacher means today.

    Raises:
        KdqError: a branch cannot be planned.
    """
    shared = Shared()

    def plan(recipe: Recipe) -> Plan:
        def told(model: str, fetched: Fetched) -> None:
            if model not in said:
                said.add(model)
                tell(f"teacher {model} is {fetched.said}")

        return make_plan(resolved(recipe, site, told, shared.fetched), site, shared.catalog, shared.memo)

    said: set[str] = set()
    branches = [Branch(found.name, {}, found)] if isinstance(found, Recipe) else found.known
    return StudyPlan(found.name, tuple(PlannedBranch(one.name, one.axes, plan(one.recipe)) for one in branches))


def hints_of(study: StudyPlan, site: Site) -> Iterator[str]:
    """Hints on recipes that are known to be poor, each once; and what kept entries of the first branch show."""
    catalog, store, memo = Catalog.load(), open_store(site), Memo()
    asked = (asked_of(branch.plan.recipe, site, catalog, memo) for branch in study.branches)
    yield from dict.fromkeys(hint for one in asked for hint in hints(one))
    plan = study.branches[0].plan
    kept = {line.stage: line.key for line in forecast(plan, store) if line.state == "cached" and line.key}
    yield from learned({node.gives: store.get(kept[node.name]) for node in plan.nodes if node.name in kept})
