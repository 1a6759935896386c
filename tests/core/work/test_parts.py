"""Classes and slices that int8 answers worse: planted ones are found, and chance alone marks none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdq_core.work.effects import Files, Part
from kdq_core.work.parts import LISTED, files_of, groups

CLASSES, SAMPLES = 4, 800


def logits(answers: np.ndarray) -> np.ndarray:
    return np.float32(np.eye(CLASSES)[answers])


def answered(truth: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Right answers, but where `wrong`."""
    return np.where(wrong, (truth + 1) % CLASSES, truth)


def compared(seed: int, columns: dict[str, Any], **lost: np.ndarray) -> Files:
    """Two files that err on 10 % of the samples, each on others; int8 also errs where `lost` says."""
    random = np.random.default_rng(seed)
    truth = np.arange(SAMPLES) % CLASSES
    noise = random.random((2, SAMPLES)) < 0.1
    both = lost.get("both", np.zeros(SAMPLES, bool))
    student = answered(truth, noise[0] | both)
    int8 = answered(truth, noise[1] | both | lost.get("int8", np.zeros(SAMPLES, bool)))
    return files_of(logits(student), logits(int8), truth, columns)


def marked(found: Files) -> dict[tuple[str, str], str]:
    return {(part.column, part.value): part.verdict for part in found.parts if part.verdict}


def test_chance_alone_marks_a_part_in_about_one_run_of_twenty_at_most() -> None:
    wrong = sum(bool(marked(compared(seed, {"writer": np.arange(SAMPLES) % 7}))) for seed in range(40))
    assert wrong <= 4


def test_a_slice_that_int8_lost_comes_first_and_one_that_is_hard_for_both_is_weak() -> None:
    speaker = np.array(["ada", "bob", "cid", "dan"])[np.arange(SAMPLES) // 4 % 4]
    lost = compared(0, {"speaker": speaker}, int8=speaker == "cid")
    assert {key for key in marked(lost) if key[0] == "speaker"} == {("speaker", "cid")}
    first = lost.parts[0]
    assert (first.samples, first.in_int8) == (200, 0.0)
    assert first.low < first.in_int8 - first.in_float < first.high < -0.7
    hard = compared(0, {"speaker": speaker}, both=(speaker == "bob") & (np.arange(SAMPLES) % 3 == 0))
    assert marked(hard) == {("speaker", "bob"): "weak"}


def test_a_class_that_int8_lost_is_found_and_its_samples_are_listed() -> None:
    truth = np.arange(SAMPLES) % CLASSES
    found = compared(1, {}, int8=truth == 2)
    assert marked(found) == {("class", "2"): "lost"}
    assert len(found.flips) == LISTED
    assert (found.lost, found.gained) == (found.lost, round(found.lost + SAMPLES * (found.in_int8 - found.in_float)))
    assert all(flip.label == flip.in_float != flip.in_int8 for flip in found.flips if flip.kind == "lost")


def test_samples_without_a_label_do_not_count() -> None:
    truth = np.array([0, 1, -1, -100] * 20)
    found = files_of(logits(np.abs(truth) % 2), logits(np.zeros(80, int)), truth, {})
    assert (found.samples, found.in_float, found.in_int8) == (40, 1.0, 0.5)
    assert {part.value for part in found.parts} == {"0", "1"}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0, 1, 1, 1], ["1", "0"]),
        (["b", "a", "b"], ["b", "a"]),
        ([0.5, np.nan, 0.5], ["0.5", "missing"]),
        (list(range(40)), ["0 to 9.75", "9.75 to 19.5", "19.5 to 29.25", "29.25 to 39"]),
        ([0] * 90 + list(range(1, 41)), ["0 to 7.75", "7.75 to 40"]),
    ],
)
def test_a_column_is_grouped_by_value_and_numbers_of_many_values_by_quartiles(values: Any, names: list[str]) -> None:
    found = list(groups(np.array(values)))
    assert [name for name, _ in found] == names
    assert np.sum([mask for _, mask in found], axis=0).tolist() == [1] * len(values)


def test_a_part_is_a_plain_record() -> None:
    assert Part.model_validate_json(compared(0, {}).parts[0].model_dump_json()).column == "class"
