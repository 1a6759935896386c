"""Intervals of metrics: against the bootstrap of SciPy, and how often they hold in simulation."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import f1_score

from kdq_core.api import exact, mcnemar, wilson
from kdq_evaluators.classes import absolute, ece, macro, prior_shift, relative, said
from kdq_evaluators.regression import numeric
from kdq_evaluators.sampled import Sampled, grouped, groups_of, mean_of, ratio_of, score, standard_error


@pytest.fixture(autouse=True)
def one_thread():
    """Small arrays: threads that wait for each other take longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


DRAWS = 1000
HOLDS = range(930, 971)


def drawn(random, samples, classes=6, sharp=3.0, prior=None):
    """Logits of two models that err in part on the same samples, `[N, C]`, and labels; overconfident by `sharp`."""
    labels = random.choice(classes, samples, p=prior)
    logits = random.normal(size=(samples, classes))
    logits[np.arange(samples), labels] += 1.5
    other = logits + 0.5 * random.normal(size=logits.shape)
    return sharp * logits, sharp * other, labels


def measured(logits, other, labels):
    one, another = (said(x, np.full(len(labels), True), labels, 3) for x in (logits, other))
    return {metric.name: metric for metric in (*absolute(one, 3), *relative(one, another))}


def held(draw, samples, draws=DRAWS):
    """How often the interval of each metric of `draws` samples holds what a very large sample gives."""
    truth, found = draw(400_000), Counter()
    for _ in range(draws):
        for name, metric in draw(samples).items():
            if metric.low is not None:
                found[name] += metric.low <= truth[name].value <= metric.high
    return found


@pytest.mark.rare
@pytest.mark.parametrize(("samples", "prior"), [(500, None), (300, None), (800, (0.45, 0.2, 0.15, 0.1, 0.06, 0.04))])
def test_the_intervals_of_a_classifier_hold_nineteen_times_in_twenty(samples, prior):
    random = np.random.default_rng(samples)
    found = held(lambda count: measured(*drawn(random, count, prior=prior)), samples)
    near_zero = {found.pop(name) for name in ("prior_shift", "ece")}  # the next test
    assert min(near_zero) >= 0.93 * DRAWS
    assert len(found) == 11
    assert {name: n for name, n in found.items() if n not in HOLDS} == {}


@pytest.mark.parametrize("sharp", [1.0, 1.3, 3.0])
def test_the_interval_of_a_distance_holds_from_zero_on(sharp):
    random = np.random.default_rng(0)

    def draw(samples):
        labels = random.integers(0, 2, samples)
        logits = np.zeros((samples, 2))
        logits[:, 1] = 2 * sharp * (2 * labels - 1 + random.normal(size=samples)) + (sharp - 1) / 2
        one = said(logits, np.full(samples, True), labels, 2)
        return {found.name: found.metric() for found in (ece(one), prior_shift(one))}

    found = held(draw, 300, DRAWS)
    assert min(found["ece"], found["prior_shift"]) >= 0.92 * DRAWS  # over 0.97 near zero, which has one side alone


def test_the_intervals_of_means_and_ratios_hold_nineteen_times_in_twenty():
    random = np.random.default_rng(1)
    found = Counter()
    for _ in range(DRAWS):
        truth = random.normal(size=300)
        given, other = truth + 2 * random.normal(size=300), truth + random.normal(size=300)
        for metric in numeric(given, truth, other):
            wanted = {"rmse": 2.0, "mae": 2 * np.sqrt(2 / np.pi)}
            wanted |= {"rmse_difference": 1.0, "mae_difference": np.sqrt(2 / np.pi)}
            found[metric.name] += metric.low <= wanted[metric.name] <= metric.high
        words = random.integers(1, 30, 200)
        rate = random.beta(2, 18, 200)  # samples are easy or hard, so that words are not independent
        wer = ratio_of("wer", random.binomial(words, rate), words, "errors a unit").metric()
        found["wer"] += wer.low <= 0.1 <= wer.high
        gains = mean_of("ndcg", random.beta(0.5, 1.5, 200)).metric()
        found["ndcg"] += gains.low <= 0.25 <= gains.high
        skill = random.beta(2, 1, 150)[:, None]
        labels = (random.random((150, 8)) < skill).mean(1)
        accuracy = mean_of("label_accuracy", labels).metric()
        found["label_accuracy"] += accuracy.low <= 2 / 3 <= accuracy.high
    assert len(found) == 7
    assert {name: n for name, n in found.items() if n not in HOLDS} == {}


def test_the_interval_of_groups_holds_nineteen_times_in_twenty():
    random = np.random.default_rng(2)
    found = Counter()
    groups = groups_of(400)
    for _ in range(DRAWS):
        over, under = random.random((2, 400)) < np.array([[0.3], [0.6]])
        other = over ^ (random.random(400) < 0.1)
        ones = []
        for hits in (over, other):
            sums = [np.bincount(groups, x & (hits if one else True), 20) for one, x in ((True, under), (False, under))]
            without = (sums[0].sum() - sums[0]) / (sums[1].sum() - sums[1])
            ones.append(grouped("bleu", sums[0].sum() / sums[1].sum(), without, 400))
        value, difference = ones[1].metric(), ones[1].difference(ones[0])
        found["value"] += value.low <= 0.34 <= value.high
        found["difference"] += difference.low <= 0.04 <= difference.high
        assert (value.samples, difference.samples) == (400, 400)
    assert {name: n for name, n in found.items() if n not in HOLDS} == {}


def test_the_errors_of_macro_f1_and_its_difference_are_those_of_the_paired_bootstrap():
    random = np.random.default_rng(3)
    logits, other, labels = drawn(random, 500)
    one, another = (said(x, np.full(500, True), labels, 3) for x in (logits, other))
    rows = np.arange(500)

    def f1(rows, classes):
        return f1_score(labels[rows], classes[rows], average="macro")

    for statistic, influence in (
        (lambda at: f1(at, one.classes), macro(one)[2].influence),
        (
            lambda at: f1(at, one.classes) - f1(at, another.classes),
            macro(one)[2].influence - macro(another)[2].influence,
        ),
    ):
        drawn_anew = stats.bootstrap((rows,), statistic, vectorized=False, n_resamples=300, rng=random, method="basic")
        assert standard_error(influence) == pytest.approx(drawn_anew.standard_error, rel=0.12)


def test_wilsons_interval_of_whole_samples_is_that_of_scipy():
    assert score(0.3, 40) == pytest.approx(wilson(12, 40))
    assert score(1.0, 25) == pytest.approx(wilson(25, 25))
    assert exact(0, 0) == (0.0, 1.0)
    assert exact(7, 20) == pytest.approx((stats.beta.ppf(0.025, 7, 14), stats.beta.ppf(0.975, 8, 13)))
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 9) == pytest.approx(2 * stats.binom.cdf(1, 10, 0.5))


@pytest.mark.parametrize("samples", [20, 100, 300])
def test_an_exact_interval_holds_nineteen_times_in_twenty_or_more_often_whatever_the_share(samples):
    ends = np.array([exact(count, samples) for count in range(samples + 1)])
    for share in (0.03, 0.2, 0.5, 0.8, 0.95, 0.99):
        inside = (ends[:, 0] <= share) & (share <= ends[:, 1])
        assert stats.binom.pmf(np.arange(samples + 1), samples, share)[inside].sum() >= 0.95


def test_a_share_without_spread_keeps_an_interval():
    perfect = mean_of("ndcg", np.ones(50)).metric()
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(wilson(50, 50)[0], abs=0.005)
    alike = Sampled("f1", 0.5, np.linspace(-1, 1, 50))
    difference = alike.difference(alike)
    assert difference.value == 0
    assert -0.1 < difference.low < 0 < difference.high < 0.1
