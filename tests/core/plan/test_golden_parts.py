"""What each stage reads of eleven recipes is pinned: the keys of today's chain change only on purpose."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdq_core.plan.plan import make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site

GOLDEN = Path(__file__).with_name("golden")
RECIPES = yaml.safe_load((GOLDEN / "recipes.yaml").read_text(encoding="utf-8"))
PARTS = json.loads((GOLDEN / "parts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load()


def read_of(recipe: dict[str, Any], catalog: Catalog, home: Path) -> dict[str, Any]:
    """What each stage reads: its parents, sections, plug-ins, and the names of the other parts of its key."""
    made = make_plan(
        Recipe.model_validate({"name": "digits", "workload": "digits", **recipe}), Site(home=home), catalog
    )
    found: dict[str, Any] = {}
    for node in made.nodes:
        parts = json.loads(json.dumps(node.parts))
        for section in parts["recipe"].values():
            if isinstance(section, dict) and "resolved" in section:
                section["resolved"] = sorted(section["resolved"])  # the values are those of this machine
        found[node.name] = {
            "after": node.parents,
            "recipe": parts["recipe"],
            "plugins": sorted(name for name in parts["code"] if name != "kdq"),
            "others": sorted(set(parts) - {"code", "recipe"}),
            **({"schedule": parts["others"]["schedule"]} if "schedule" in parts.get("others", {}) else {}),
        }
    return found


def test_eleven_recipes_are_pinned() -> None:
    assert len(RECIPES) == 11
    assert RECIPES.keys() == PARTS.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_the_stages_read_what_is_pinned(name: str, catalog: Catalog, tmp_path: Path) -> None:
    found = read_of(RECIPES[name], catalog, tmp_path)
    assert found.keys() == PARTS[name].keys()
    for stage, parts in PARTS[name].items():
        assert found[stage] == parts, stage
