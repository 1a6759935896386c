"""Which branch is selected: goals, the Pareto front, seeds, and what is told where no branch can be selected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
from scipy import stats

from kdq_core.recipe.study import SelectSpec
from kdq_core.store.records import Anomaly, EvaluationReport, Metric
from kdq_flows.facts.selecting import Measured, select

SMALLEST = SelectSpec(minimise=("bytes",))


def measured(name: str, *, axes: dict[str, Any] | None = None, odd: bool = False, **values: float) -> Measured:
    """A branch; `teacher_top1` is the teacher's `top1`, all others are those of int8."""
    ours = [
        Metric(name=key, value=value, unit="count", direction="neither")
        for key, value in values.items()
        if key != "teacher_top1"
    ]
    models = {"int8": tuple(ours)}
    if "teacher_top1" in values:
        teacher = Metric(name="top1", value=values["teacher_top1"], unit="fraction", direction="higher")
        models["teacher"] = (teacher,)
    anomaly = Anomaly(rule="student top1 on the test split ≥ 0.83", value=0.2, bound=0.83, model="student", note="odd")
    report = EvaluationReport(models=models, anomalies=(anomaly,) if odd else ())
    return Measured(name, {"a": name} if axes is None else axes, report)


def spec(**fields: Any) -> SelectSpec:
    return SelectSpec.model_validate({"minimise": ["bytes"], **fields})


def seeds(name: str, rows: Iterable[float], **more: float) -> list[Measured]:
    return [
        measured(f"{name}{seed}", axes={"a": name, "seed": seed}, bytes=value, **more)
        for seed, value in enumerate(rows)
    ]


def test_the_smallest_branch_is_selected_and_the_verdict_says_of_how_many() -> None:
    found = select(SMALLEST, [measured("x", bytes=3), measured("y", bytes=1), measured("z", bytes=2)])
    assert (found.branch, found.pareto, found.verdict) == ("y", ("y",), "y: bytes 1; of 3 branches")


def test_a_goal_excludes_what_does_not_meet_it_however_small_it_is() -> None:
    branches = [measured("x", bytes=1, top1=0.5), measured("y", bytes=9, top1=0.9), measured("z", bytes=7, top1=0.91)]
    found = select(spec(goals=[{"metric": "top1", "at_least": 0.9}]), branches)
    assert (found.branch, found.pareto) == ("z", ("z",))
    assert found.verdict == "z: bytes 7; 2 of 3 branches meet the goals"


def test_a_goal_relative_to_the_teacher_has_each_branchs_own_bound() -> None:
    goal = spec(goals=[{"metric": "top1", "at_least": 0.9, "relative_to": "teacher"}])
    branches = [
        measured("x", bytes=1, top1=0.8, teacher_top1=0.9),  # its bound is 0.81
        measured("y", bytes=2, top1=0.8, teacher_top1=0.8),
    ]
    assert select(goal, branches).branch == "y"


def test_the_front_of_two_objectives_is_kept_and_its_first_is_selected() -> None:
    points = {"x": (1, 9), "y": (2, 5), "z": (3, 6), "w": (4, 1), "v": (4, 2)}
    branches = [measured(name, bytes=size, latency_p50_ms=time) for name, (size, time) in points.items()]
    assert select(spec(minimise=["bytes", "latency_p50_ms"]), branches).pareto == ("x", "y", "w")
    found = select(spec(minimise=["latency_p50_ms", "bytes"]), branches)
    assert (found.branch, found.pareto) == ("w", ("w", "y", "x"))
    assert found.verdict == "w: latency_p50_ms 1, bytes 4; of 5 branches"


def test_the_front_of_three_objectives_is_that_of_the_definition() -> None:
    values = [(7 * i % 11, 5 * i % 13, 3 * i % 7) for i in range(40)]
    branches = [measured(str(i), a=a, b=b, c=c) for i, (a, b, c) in enumerate(values)]
    found = select(SelectSpec(minimise=("a", "b"), maximise=("c",)), branches)
    signed = [(a, b, -c) for a, b, c in values]
    kept = [
        i
        for i, mine in enumerate(signed)
        if not any(other != mine and all(o <= m for o, m in zip(other, mine, strict=True)) for other in signed)
    ]
    assert set(found.pareto) == set(map(str, kept))
    assert found.branch == str(min(kept, key=lambda i: signed[i]))
    assert len(kept) < 40


def test_what_is_maximised_is_made_large_and_told_as_measured() -> None:
    branches = [measured("x", top1=0.5), measured("y", top1=0.75)]
    found = select(SelectSpec(maximise=("top1",)), branches)
    assert (found.branch, found.verdict) == ("y", "y: top1 0.75; of 2 branches")


def test_branches_that_differ_in_their_seed_alone_are_one_candidate_with_the_mean() -> None:
    found = select(SMALLEST, [*seeds("x", (5.0, 1.0)), *seeds("y", (2.0, 3.0))])
    assert (found.branch, found.pareto) == ("y0", ("y0",))
    assert found.verdict.startswith("y0: bytes 2.5; of 2 candidates of 2 seeds; better in bytes than x0: not shown")


def test_a_difference_over_the_seeds_is_shown_where_its_interval_parts_from_zero() -> None:
    mine, theirs = (2.0, 3.0, 4.0), (7.0, 8.5, 9.0)
    found = select(SMALLEST, [*seeds("x", theirs), *seeds("y", mine)])
    exact = stats.ttest_rel(theirs, mine).confidence_interval(0.95)
    assert found.verdict.endswith(
        f"better in bytes than x0: shown (mean difference {5.16667:.4g}, {exact.low:.4g} to {exact.high:.4g})"
    )


def test_only_seeds_that_both_candidates_have_are_compared() -> None:
    """Seed 0 of x failed; seeds 1 and 2 differ by exactly 10 and 12."""
    branches = [*seeds("x", (0.0, 110.0, 212.0))[1:], *seeds("y", (0.0, 100.0, 200.0))]
    assert "mean difference 11," in select(SMALLEST, branches).verdict
    alone = [*seeds("x", (0.0, 110.0))[1:], *seeds("y", (0.0, 100.0))]
    assert "better in" not in select(SMALLEST, alone).verdict


def test_a_goal_is_about_the_mean_over_the_seeds_and_the_nearest_is_told_with_it() -> None:
    branches = [
        measured(f"x{seed}", axes={"a": 1, "seed": seed}, bytes=1, top1=top1) for seed, top1 in enumerate((0.95, 0.75))
    ]
    assert select(spec(goals=[{"metric": "top1", "at_least": 0.85}]), branches).branch == "x0"
    found = select(spec(goals=[{"metric": "top1", "at_least": 0.9}]), branches)
    assert found.branch is None
    assert found.verdict == (
        "none of 1 candidates of 2 seeds meets the goals; the nearest is x0: int8 top1 ≥ 0.9: it is 0.85, bound 0.9"
    )


def test_without_a_candidate_the_nearest_by_its_worst_goal_is_named() -> None:
    goals = [{"metric": "top1", "at_least": 1.0}, {"metric": "bytes", "at_most": 100}]
    branches = [
        measured("x", bytes=100, top1=0.5),
        measured("y", bytes=120, top1=0.9),
        measured("z", bytes=300, top1=1),
    ]
    found = select(spec(goals=goals), branches)
    assert (found.branch, found.pareto) == (None, ())
    assert found.verdict == (
        "none of 3 branches meets the goals; the nearest is y: int8 bytes ≤ 100: it is 120, bound 100"
    )


def test_without_a_measured_branch_none_is_selected() -> None:
    found = select(SMALLEST, [])
    assert (found.branch, found.verdict) == (None, "no branch was measured, so none is selected")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_selected_nor_does_it_meet_a_goal(value: float) -> None:
    branches = [measured("x", bytes=value, top1=value), measured("y", bytes=5, top1=0.5)]
    assert select(SMALLEST, branches).branch == "y"
    for side in ("at_least", "at_most"):
        goal = spec(goals=[{"metric": "top1", side: 0.5}])
        assert select(goal, [measured("x", bytes=1, top1=value), branches[1]]).branch == "y"
    assert select(SMALLEST, branches[:1]).branch is None


@pytest.mark.parametrize("goals", [[], [{"metric": "top1", "at_least": 0.5}]])
def test_an_anomalous_branch_is_never_selected_with_or_without_goals(goals: list[Any]) -> None:
    branches = [measured("x", bytes=1, top1=0.9, odd=True), measured("y", bytes=5, top1=0.9)]
    assert select(spec(goals=goals), branches).branch == "y"
    found = select(spec(goals=goals), branches[:1])
    assert found.branch is None
    assert "the nearest is x: student top1 on the test split ≥ 0.83: it is 0.2, bound 0.83" in found.verdict


def test_one_anomalous_seed_takes_its_candidate_out() -> None:
    branches = [
        measured("x0", axes={"a": 1, "seed": 0}, bytes=1),
        measured("x1", axes={"a": 1, "seed": 1}, bytes=1, odd=True),
        measured("y0", axes={"a": 2, "seed": 0}, bytes=9),
    ]
    assert select(SMALLEST, branches).branch == "y0"


def test_an_objective_that_was_not_measured_is_named() -> None:
    found = select(SMALLEST, [measured("x", top1=1.0)])
    assert (found.branch, found.verdict) == (None, "no branch can be selected: 'bytes' was not measured for int8")
