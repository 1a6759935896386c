"""The graph of a plan as a text, for `kdq plan --mermaid` and for Prefect's page of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdq_core.plan.study import StudyPlan


def mermaid(plan: StudyPlan) -> str:
    """The graph of a study in Mermaid's language; a node that serves several branches says how many."""
    numbers = {identity: f"n{number}" for number, identity in enumerate(plan.nodes)}
    lines = ["graph LR"]
    for identity, one in plan.nodes.items():
        of = f"{len(one.branches)} branches" if len(one.branches) > 1 else one.branches[0]
        title = one.node.name if len(plan.branches) == 1 else f"{one.node.name}<br/>{of}"
        lines.append(f'  {numbers[identity]}["{title}"]')
        lines += [f"  {numbers[parent]} --> {numbers[identity]}" for parent in dict.fromkeys(one.parents)]
    return "\n".join(lines)
