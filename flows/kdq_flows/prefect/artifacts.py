"""The artifacts that Prefect's page of a run shows; the keys begin with the recipe's name."""

from __future__ import annotations

import re

from prefect.artifacts import create_markdown_artifact

from kdq_core.plan.study import StudyPlan
from kdq_flows.facts.mermaid import mermaid


def key_of(recipe: str, what: str) -> str:
    """The key of an artifact, for which Prefect takes small letters, digits and dashes."""
    return "-".join([*re.findall("[a-z0-9]+", recipe.lower()), what])


def show_plan(recipe: str, plan: StudyPlan) -> None:
    """Publish the graph of the stages, which Prefect's page draws."""
    text = f"```mermaid\n{mermaid(plan)}\n```"
    create_markdown_artifact(text, key=key_of(recipe, "plan"), description="the stages, and what each reads")
