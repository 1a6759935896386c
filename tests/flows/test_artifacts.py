"""What Prefect's page of a run shows beside states."""

import re
from typing import Any

import pytest

from kdq_core.plan.study import StudyPlan
from kdq_flows.prefect import artifacts


@pytest.mark.parametrize(("recipe", "key"), [("digits", "digits-result"), ("My_net.2", "my-net-2-result")])
def test_an_artifact_is_named_by_its_recipe_as_prefect_takes_it(recipe: str, key: str) -> None:
    assert artifacts.key_of(recipe, "result") == key
    assert re.fullmatch("[a-z0-9-]+", key)


def test_the_plan_is_published_as_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Any]()
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda text, **more: made.append((text, more["key"])))
    artifacts.show_plan("digits", StudyPlan("digits", ()))
    assert made == [("```mermaid\ngraph LR\n```", "digits-plan")]
