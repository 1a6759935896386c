"""Charts, pictures, numbers and the Pareto front."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from kdq_core.store.records import Metric
from kdq_flows.facts.front import on_front
from kdq_flows.facts.parts import GainFacts
from kdq_flows.facts.verdict import _speed, _teacher, quality_in_words
from kdq_flows.report.charts import Interval, Series, axis, intervals, labels, lines
from kdq_flows.report.numbers import number, seconds, short
from kdq_flows.report.overview import _latencies
from kdq_flows.report.pictures import picture


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.98765, "fraction", "98.77 %"), (228_727, "bytes", "228.7 kB"), (999, "bytes", "999 B"),
     (0.0348, "ms", "0.0348 ms"), (1.2852, "ratio", "1.29x"), (221_434, "count", "221,434"), (math.inf, "ms", "inf"),
     (3, "lsb", "3 lsb")],
)  # fmt: skip
def test_a_value_has_its_unit(value: float, unit: str, text: str) -> None:
    assert number(value, unit) == text


def test_durations_are_read_at_a_glance() -> None:
    assert [seconds(value) for value in (0.44, 65.2, 3725)] == ["0.4 s", "1 min 05 s", "1 h 02 min"]


def test_ticks_are_round_numbers_inside_the_axis() -> None:
    assert [text for _, text in axis([0.53, 0.99], 0, 100).ticks(lambda v: short(v, "fraction"))] == [
        "60%", "80%", "100%"
    ]  # fmt: skip
    assert [text for _, text in axis([0.04, 5], 0, 100, log=True).ticks(lambda v: f"{v:g}")] == [
        "0.05", "0.1", "0.2", "0.5", "1", "2", "5"
    ]  # fmt: skip
    flat = axis([2.0, 2.0], 0, 100)
    assert flat.place(2.0) == 50


def test_a_curve_leaves_out_what_is_not_finite_and_a_chart_of_nothing_is_none() -> None:
    series = [Series("a", "m0", [(1, 1.0), (2, math.nan), (3, 2.0)]), Series("b", "m1", [(1, math.inf)])]
    drawn = lines("loss", series, "epoch", str)
    assert drawn is not None
    ((label, _, path, marks),) = drawn.lines
    assert (label, path.count("L"), len(marks)) == ("a", 1, 2)
    assert lines("loss", series[1:], "epoch", str) is None


def test_the_times_of_calls_are_drawn_over_the_share_of_calls() -> None:
    def quantiles(*ms: float) -> dict[str, Metric]:
        names = [f"latency_p{q}_ms" for q in (99, 50, 95)[: len(ms)]]
        found = [Metric(name=n, value=v, unit="ms", direction="lower") for n, v in zip(names, ms, strict=True)]
        return {one.name: one for one in (*found, found[0].model_copy(update={"name": "latency_p50_ms/8"}))}

    named = {"student": quantiles(0.4, 0.2, 0.3), "int8": quantiles(0.2, 0.1, 0.15), "teacher": quantiles(1.0)}
    drawn = _latencies(named, {"student": "float student", "int8": "int8 student", "teacher": "teacher"})
    assert drawn is not None
    assert [line[0] for line in drawn.lines] == ["float student", "int8 student"]
    assert drawn.described == (
        "distribution of the time of a call, ms: float student ends at 0.4; int8 student ends at 0.2."
    )
    assert all(line[2].count("L") == 2 for line in drawn.lines)


def test_an_interval_with_a_missing_end_is_a_mark_alone() -> None:
    drawn = intervals("top-1", [Interval("a", "m0", 0.5, 0.4, 0.6), Interval("b", "m1", 0.5, 0.4)], "", str)
    assert drawn is not None
    assert (len(drawn.lines), len(drawn.whiskers)) == (2, 1)
    assert drawn.described == "top-1: a: 0.5 (0.4 to 0.6); b: 0.5."


def test_labels_of_close_points_do_not_cover_each_other() -> None:
    found = labels([(100, 100), (112, 100), (106, 104)], ["int8 student", "float student", "teacher"])
    boxes = []
    for x, y, text, anchor in found:
        left = x - {"start": 0, "middle": 0.5, "end": 1}[anchor] * 7 * len(text)
        boxes.append((left, y - 9, left + 7 * len(text), y + 1))
    for first in range(3):
        for second in range(first):
            a, b = boxes[first], boxes[second]
            assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def image(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))


@pytest.mark.parametrize(
    ("shape", "kind", "size"),
    [((1, 8, 8), "image", (8, 8)), ((3, 300, 600), "image", (144, 72)), ((40, 100), "image", (100, 40)),
     ((1, 16000), "spectrogram", (144, 73))],
)  # fmt: skip
def test_images_and_sound_are_pictures(shape: tuple[int, ...], kind: str, size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = picture(values)
    assert (found.kind, image(found.data).size) == (kind, size)


def test_a_tone_is_a_line_in_its_spectrogram() -> None:
    tone = np.sin(np.arange(8000) * 2 * np.pi * 0.25).astype(np.float32)  # a quarter of the sampling rate
    pixels = np.asarray(image(picture(tone).data), np.float64)
    assert abs(int(pixels.mean(1).argmax()) / len(pixels) - 0.5) < 0.05


def test_tokens_and_values_are_written_out() -> None:
    assert picture(np.array([7, 3, 0, 9, 0, 0])).text == "7 3 0 9"
    assert picture(np.arange(20.0)).text == "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 ..."


def test_the_front_has_those_that_no_other_beats_in_everything() -> None:
    points = [(1, -0.9), (2, -0.9), (2, -0.95), (3, -0.95), (9, -0.99), (math.nan, -1.0)]
    assert on_front(points) == [True, False, True, False, True, False]
    assert on_front([(1, 2, 3), (2, 1, 3), (2, 2, 3), (1, 2, 2)]) == [False, True, False, True]


def test_slower_and_faster_are_said_only_where_the_interval_parts_from_one() -> None:
    def told(value: float, low: float | None, high: float | None) -> str:
        speed = Metric(name="speedup", value=value, unit="ratio", direction="higher", low=low, high=high)
        return next(_speed([speed], 1))

    assert told(0.84, 0.8, 0.88) == "SLOWER than float, 0.84x its speed (0.8 to 0.88) at batch 1"
    assert told(1.02, 0.97, 1.07) == "no difference in speed shown (0.97 to 1.07) at batch 1"
    assert told(1.02, None, 1.07) == "1.02x the speed at batch 1"


def test_a_regression_is_told_by_its_first_error() -> None:
    ours, theirs = ([Metric(name="rmse", value=value, unit="label", direction="lower")] for value in (0.105, 0.1))
    assert quality_in_words(ours, theirs) == "+0.005 rmse against float"
    assert quality_in_words(ours, ()) == ""


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [([], []), (["undecided"], ["the teacher did not help: no gain is shown"]),
     (["better", "undecided"], ["the teacher brought +1 points top-1 (0.1 to 2)"]),
     (["better", "worse"], ["WORSE with the teacher (s1: +1 points top-1 (0.1 to 2))"])],
)  # fmt: skip
def test_the_verdict_says_what_the_teacher_brought(verdicts: list[str], words: list[str]) -> None:
    shown = {"metric": "top1", "taught": 1, "control": 1, "difference": 0.01, "low": 0.001, "high": 0.02, "samples": 9}
    gains = [GainFacts.model_validate({"stage": f"s{n}", "verdict": v, **shown}) for n, v in enumerate(verdicts)]
    assert list(_teacher(gains)) == words
