"""`kdq explain` around the analysis: the recipe with its rules, their bytes, and wrong requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Rule, Site
from kdq_flows.report import kept
from kdq_flows.report.explain import explained, with_rules

RULES = (Rule(match="stem", skip=True), Rule(match="head", weights=8))


@pytest.mark.parametrize(
    ("section", "others"),
    [("", {}), ("quantize: static\n", {"use": "static"}),
     ("quantize: {weights: 4, rules: [{match: conv, weights: 6}]}\n", {"weights": 4})],
)  # fmt: skip
def test_the_rules_are_added_to_the_recipe_behind_its_own(section: str, others: dict[str, Any]) -> None:
    found = yaml.safe_load(with_rules(f"name: x\nworkload: digits\n{section}", RULES))
    own = [{"match": "conv", "weights": 6}] if "rules" in section else []
    rules = [*own, {"match": "stem", "skip": True}, {"match": "head", "weights": 8}]
    assert found == {"name": "x", "workload": "digits", "quantize": {**others, "rules": rules}}


def test_a_run_whose_results_are_gone_is_an_error(records: dict[str, Any], view_of: Any, record_of: Any) -> None:
    record = record_of(view_of(**records))
    with pytest.raises(RecipeError) as caught:
        explained(record.plan.site, record, samples=1, split="test", tell=print)
    assert str(caught.value) == (
        "the store no longer has the results of train_teacher, distill, quantize, export, place of run 'x-1'; run its "
        "recipe again"
    )


def test_a_split_that_does_not_exist_is_an_error(call: Any) -> None:
    assert call("explain", "x", "--split", "tset") == (
        2, "", "error: --split is 'tset'; allowed: validation, test, train\n"
    )  # fmt: skip


def test_what_was_found_is_kept_and_a_damaged_file_counts_as_nothing(tmp_path: Path) -> None:
    site = Site(home=tmp_path)
    assert kept.explained(site, "x-1") is None
    place = kept.folder(site, "x-1")
    place.mkdir(parents=True)
    (place / kept.EXPLAINED).write_text("{")
    assert kept.explained(site, "x-1") is None
    text = '{"samples": 1, "in_float": null, "quantized": null, "quantized_db": 9.0, "effects": []}'
    (place / kept.EXPLAINED).write_text(text)
    found = kept.explained(site, "x-1")
    assert found is not None
    assert found.quantized_db == 9.0
