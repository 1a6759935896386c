"""Searches with Optuna: proposals, resumption and planted optima, without training."""

from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import RecipeError
from kdq_core.recipe.study import Axes, SearchSpec, SelectSpec
from kdq_flows.run.searching import Searcher

SELECT = SelectSpec(minimise=("bytes",))
DOCUMENT: dict[str, Any] = {"name": "searched", "seed": 3}


def searcher(home: Path, space: dict[str, Any], sampler: str = "tpe", document: dict[str, Any] = DOCUMENT) -> Searcher:
    spec = SearchSpec.model_validate({"space": space, "sampler": sampler})
    return Searcher(spec, SELECT, document, home)


def cost(axes: Axes) -> float:
    """Least, 0, at 0.3 with the second choice."""
    rate, kind = axes["distill.options.alpha"], axes["distill"]
    assert isinstance(rate, float)
    return (rate - 0.3) ** 2 + (0.0 if kind == {"use": "dkd"} else 0.5)


SPACE: dict[str, Any] = {"distill.options.alpha": {"low": 0.0, "high": 1.0}, "distill": ["logit-kd", {"use": "dkd"}]}


def test_twenty_trials_find_a_planted_optimum(tmp_path: Path) -> None:
    found = searcher(tmp_path, SPACE)
    told = []
    for _ in range(20):
        trial, axes = found.ask()
        told.append(cost(axes))
        found.tell(trial, [told[-1]], {})
    assert min(told) < 0.01


def test_a_second_run_goes_on_with_other_proposals(tmp_path: Path) -> None:
    first = searcher(tmp_path, SPACE, "random")
    proposed = []
    for _ in range(3):
        trial, axes = first.ask()
        proposed.append(axes)
        first.tell(trial, [1.0], {})
    again = searcher(tmp_path, SPACE, "random", DOCUMENT | {"limits": {"trials": 9}})
    assert again.known() == proposed
    assert again.ask()[1] not in proposed
    assert searcher(tmp_path, SPACE, "random", DOCUMENT | {"seed": 4}).known() == []


def test_a_grid_ends_after_each_combination_once(tmp_path: Path) -> None:
    found = searcher(tmp_path, {"quantize.weights": {"low": 2, "high": 8, "step": 3}, "seed": [0, 1]}, "grid")
    seen = []
    while not found.exhausted:
        trial, axes = found.ask()
        seen.append((axes["quantize.weights"], axes["seed"]))
        found.tell(trial, [0.0], {})
    assert sorted(seen) == [(bits, seed) for bits in (2, 5, 8) for seed in (0, 1)]  # type: ignore[type-var]


def test_a_grid_over_a_range_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        searcher(tmp_path, SPACE, "grid")
    assert str(caught.value) == (
        "the sampler 'grid' needs all values of 'distill.options.alpha', and a range without 'step' has endless many; "
        "write a 'step' or a list"
    )


def test_what_misses_its_goals_leads_the_search_elsewhere(tmp_path: Path) -> None:
    """The cheap half of the space misses the goal; without the goal, most proposals come from it."""

    def dear(home: Path, *, goal: bool) -> int:
        found, late = searcher(home, {"distill.options.alpha": {"low": 0.0, "high": 1.0}}), 0
        for number in range(24):
            trial, axes = found.ask()
            value = axes["distill.options.alpha"]
            assert isinstance(value, float)
            found.tell(trial, [value], {"top1": max(0.0, 0.5 - value)} if goal else {})
            late += number >= 12 and value >= 0.5
        return late

    assert dear(tmp_path / "goal", goal=True) > dear(tmp_path / "none", goal=False) + 3
