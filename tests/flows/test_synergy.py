"""Effects of distillation and quantization against an independent computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kdq_core.recipe.strict_yaml import parse
from kdq_flows.facts.synergy import Cells, Effect, Synergy, more_seeds, synergy
from kdq_flows.synergy import synergy_study

PATHS = ("float", "ptq", "qat")


def cells(seeds: int, bits: tuple[int, ...] = (8, 4), methods: tuple[str, ...] = ("none", "kd", "dkd")) -> Cells:
    rng = np.random.default_rng(seeds)
    keys = [(m, p, b) for m in methods for p in PATHS for b in ((0,) if p == "float" else bits)]
    return {key: rng.normal(0.8, 0.02, seeds).tolist() for key in keys}  # type: ignore[misc]


def found(
    given: Cells, *, unit: str = "fraction", direction: str = "higher", bits: tuple[int, ...] = (8, 4)
) -> Synergy:
    return synergy(given, recipe="r", metric="top-1", unit=unit, direction=direction, epochs=4, bits=bits)


def effect(one: Synergy, name: str, distiller: str, bits: int) -> Effect:
    return next(e for e in one.effects if (e.name, e.distiller, e.bits) == (name, distiller, bits))


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_effects_are_paired_differences_with_students_interval(direction: str) -> None:
    given, sign = cells(5), -1.0 if direction == "lower" else 1.0
    got = found(given, direction=direction)
    for method in ("kd", "dkd"):
        for bits in (8, 4):
            cell = {
                (who, path): np.array(given[name, path, 0 if path == "float" else bits])  # type: ignore[index]
                for who, name in (("kd", method), ("no", "none"))
                for path in PATHS
            }
            gains = [cell["kd", path] - cell["no", path] for path in PATHS]
            trained = [cell[who, "qat"] - cell[who, "ptq"] for who in ("kd", "no")]
            expected = {
                "main effect of KD": sum(gains) / 3,
                "main effect of QAT": sum(trained) / 2,
                "KD in float": cell["kd", "float"] - cell["no", "float"],
                "KD under PTQ": cell["kd", "ptq"] - cell["no", "ptq"],
                "KD under QAT": cell["kd", "qat"] - cell["no", "qat"],
                "QAT against PTQ, with KD": cell["kd", "qat"] - cell["kd", "ptq"],
                "QAT against PTQ, without KD": cell["no", "qat"] - cell["no", "ptq"],
                "interaction": cell["kd", "qat"] - cell["no", "qat"] - cell["kd", "float"] + cell["no", "float"],
            }
            for name, each in expected.items():
                each = sign * each
                exact = stats.ttest_1samp(each, 0.0).confidence_interval(0.95)
                one = effect(got, name, method, bits)
                assert (one.mean, one.low, one.high) == pytest.approx((each.mean(), exact.low, exact.high), abs=1e-9)
                shown = stats.ttest_1samp(each, 0.0).pvalue < 0.05
                assert one.verdict == ("not shown" if not shown else "helps" if each.mean() > 0 else "hurts")
    assert len(got.effects) == 2 * 2 * 8
    assert len(got.sentences) == 4


def test_cells_are_told_as_measured_also_for_errors() -> None:
    given = cells(4)
    got = found(given, direction="lower")
    assert len(got.cells) == len(given)
    for cell in got.cells:
        values = given[cell.distiller, cell.path, cell.bits]
        exact = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert (cell.mean, cell.low, cell.high) == pytest.approx((np.mean(values), exact.low, exact.high))


def planted(gain: float, spread: float, seeds: int = 4) -> Cells:
    """KD brings nothing in float and `gain` under QAT, give or take `spread`."""
    noise = [spread * (-1) ** seed for seed in range(seeds)]
    flat = [0.5 + 0.01 * seed for seed in range(seeds)]
    given = {(who, path, 0 if path == "float" else 8): list(flat) for who in ("none", "kd") for path in PATHS}
    given["kd", "qat", 8] = [value + gain + each for value, each in zip(flat, noise, strict=True)]
    return given  # type: ignore[return-value]


def test_a_planted_gain_under_quantization_is_told_in_points() -> None:
    (said,) = found(planted(0.02, 0.001), bits=(8,)).sentences
    assert said == (
        "kd at 8 bits: helps the quantized student, +2 points top-1 (1.8 to 2.2); "
        "together with QAT, beyond its gain in float: helps, +2 points top-1 (1.8 to 2.2)"
    )


def test_a_planted_gain_of_an_error_hurts() -> None:
    got = found(planted(0.02, 0.001), direction="lower", unit="count", bits=(8,))
    assert effect(got, "KD under QAT", "kd", 8).verdict == "hurts"
    assert got.sentences[0].startswith("kd at 8 bits: hurts the quantized student, -0.02 top-1 (-0.022 to -0.018); ")


def test_what_is_not_shown_says_how_many_more_seeds_would_decide() -> None:
    got = found(planted(0.01, 0.01), bits=(8,))
    one = effect(got, "interaction", "kd", 8)
    assert one.verdict == "not shown"
    assert one.more_seeds is not None
    assert (
        f"not shown, +1 points top-1 (-0.84 to 2.8); about {one.more_seeds} more seeds would decide" in got.sentences[0]
    )
    none = effect(got, "KD in float", "kd", 8)
    assert (none.mean, none.low, none.high, none.verdict, none.more_seeds) == (0.0, 0.0, 0.0, "not shown", None)


def test_one_seed_gives_no_interval_and_shows_nothing() -> None:
    got = found(planted(0.02, 0.0, seeds=1), bits=(8,))
    one = effect(got, "KD under QAT", "kd", 8)
    assert (one.low, one.high, one.verdict, one.more_seeds) == (-math.inf, math.inf, "not shown", None)
    assert "not shown, +2 points top-1; one seed gives no interval" in got.sentences[0]


@pytest.mark.parametrize("values", [[0.03, -0.01, 0.02], [1.0, 2.0, -1.5, 0.4, 0.2]])
def test_the_seeds_that_would_decide_are_the_fewest_whose_interval_parts_from_zero(values: list[float]) -> None:
    more = more_seeds(values)
    assert more is not None
    mean, spread, have = np.mean(values), np.std(values, ddof=1), len(values)
    for seeds, decides in ((have + more, True), (have + more - 1, False)):
        half = stats.t.ppf(0.975, seeds - 1) * spread / math.sqrt(seeds)
        assert (half < abs(mean)) == decides


def test_no_number_of_seeds_is_told_where_a_thousand_would_not_decide() -> None:
    assert more_seeds([1.0, -1.0, 0.001]) is None
    assert more_seeds([1.0]) is None
    got = found(planted(0.0001, 0.01), bits=(8,))
    assert "over 1000 seeds would decide" in got.sentences[0]


def test_the_branches_export_only_what_is_read_and_keep_what_the_recipe_says_of_its_stages() -> None:
    stages = "[train_teacher, distill, quantize, export, {use: evaluate, name: last}]"
    document = parse(f"name: r\nworkload: digits\nstages: {stages}\nlast: {{shared: 0.5}}\n", "r.yaml")
    study = synergy_study(document, seeds=1, bits=(8, 4), distillers=())
    beside = {}
    for branch in study.branches:
        options = {use.title: use.options for use in branch.recipe.stages}
        assert list(options) == ["train_teacher", "distill", "quantize", "export", "last"]
        assert options["last"] == {"shared": 0.5}
        beside[branch.axes["distiller"], branch.axes["path"], branch.axes["bits"]] = options["export"]["beside"]
    methods = ("none", "logit-kd")
    float_file = {(method, "ptq", 8): ["student"] for method in methods}
    assert beside == {(m, path, bits): [] for m in methods for path in ("ptq", "qat") for bits in (8, 4)} | float_file
