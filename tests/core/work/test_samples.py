"""Labels and samples that an evaluation keeps beside the predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdq_core.store.predictions import opened, write_array
from kdq_core.store.records import StoredPredictions
from kdq_core.tensors import Batch
from kdq_core.work import samples
from kdq_core.work.samples import chosen, flipped, labels_of, shown_of


def batch(start: int, size: int, targets: torch.Tensor | None = None, **tasks: torch.Tensor) -> Batch:
    ids = torch.arange(start, start + size)
    return Batch(inputs=(ids.float()[:, None].repeat(1, 4),), targets=targets, ids=ids, tasks=tasks)


def test_labels_are_kept_by_output_and_a_batch_without_them_has_minus_one(tmp_path: Path) -> None:
    given = [batch(0, 2), batch(2, 2, torch.tensor([4, 5]))]
    (stored,) = labels_of(lambda: given, ["logits"], tmp_path)
    assert (stored.name, opened(tmp_path, stored).tolist()) == ("logits", [-1, -1, 4, 5])
    tasks = [batch(0, 2, a=torch.tensor([1, 2]), b=torch.tensor([0.5, 1.0]))]
    assert [one.name for one in labels_of(lambda: tasks, ["a", "b"], tmp_path)] == ["a"]  # b is numbers
    assert labels_of(lambda: [batch(0, 2)], ["logits"], tmp_path) == ()


def test_flips_count_only_where_there_is_a_label() -> None:
    student, int8 = np.eye(3)[[0, 1, 2, 2]], np.eye(3)[[0, 2, 1, 1]]
    assert flipped(student, int8, np.array([0, 1, 1, -1])) == {"lost": [1], "gained": [2]}


def test_changed_answers_come_first_then_the_closest_calls() -> None:
    truth = np.zeros(40, int)
    student = np.tile([2.0, 0.0], (40, 1))
    int8 = np.stack([np.linspace(1, 3, 40), np.zeros(40)], axis=1)
    int8[30] = [0, 5]
    rows = chosen(student, int8, truth)
    assert rows[:3] == [30, 0, 1]
    assert len(rows) == samples.ENOUGH
    int8[:, 1] = 9
    assert chosen(student, int8, truth) == list(range(samples.MOST))


def test_without_classes_the_rows_that_changed_most_are_chosen() -> None:
    student, int8 = np.zeros((30, 2, 2)), np.zeros((30, 2, 2))
    int8[7], int8[3] = 1.0, 2.0
    assert chosen(student, int8, None)[:2] == [3, 7]


def kept(folder: Path) -> tuple[StoredPredictions, ...]:
    found = []
    for model, values in (("student", np.eye(2)[[0, 0, 0, 0]]), ("int8", np.eye(2)[[0, 0, 1, 0]])):
        array = write_array(folder, "logits", f"{model}.bin", np.float32(values))
        found.append(
            StoredPredictions(
                model=model, split="test", output="logits", path=array.path, dtype=array.dtype, shape=array.shape
            )
        )
    return tuple(found)


def test_the_inputs_of_the_rows_are_kept_in_the_order_of_the_rows(tmp_path: Path) -> None:
    given = [batch(0, 3, torch.zeros(3, dtype=torch.int64)), batch(3, 1, torch.zeros(1, dtype=torch.int64))]
    labels = labels_of(lambda: given, ["logits"], tmp_path)
    shown = shown_of(lambda: given, ["input"], kept(tmp_path), labels, tmp_path, untold)
    assert shown is not None
    assert shown.rows[0] == 2
    assert sorted(shown.rows) == [0, 1, 2, 3]
    assert opened(tmp_path, shown.inputs[0])[:, 0].tolist() == list(map(float, shown.rows))


@pytest.mark.parametrize(("most", "rows"), [(32, 2), (1, 1)])  # a sample has 16 bytes
def test_no_more_bytes_are_kept_than_allowed_but_one_sample_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, rows: int
) -> None:
    monkeypatch.setattr(samples, "MOST_BYTES", most)
    given = [batch(0, 4, torch.zeros(4, dtype=torch.int64))]
    shown = shown_of(lambda: given, ["input"], kept(tmp_path), (), tmp_path, untold)
    assert shown is not None
    assert len(shown.rows) == rows


def test_the_text_of_each_sample_is_kept_and_a_workload_that_raises_costs_only_the_text(tmp_path: Path) -> None:
    given = [batch(0, 4, torch.zeros(4, dtype=torch.int64))]

    def told(inputs: Any) -> str:
        return f"sample {inputs[0][0]:g}"

    def raises(inputs: Any) -> str:
        raise ValueError("no text")

    shown = shown_of(lambda: given, ["input"], kept(tmp_path), (), tmp_path, told)
    assert shown is not None
    assert shown.texts == tuple(f"sample {row}" for row in shown.rows)
    assert [shown_of(lambda: given, ["input"], kept(tmp_path), (), tmp_path, f).texts for f in (raises, untold)] == [
        (),
        (),
    ]  # type: ignore[union-attr]


def untold(_inputs: Any) -> str:
    return ""


def test_no_sample_is_kept_unless_both_students_predicted(tmp_path: Path) -> None:
    given = [batch(0, 4, torch.zeros(4, dtype=torch.int64))]
    assert shown_of(lambda: given, ["input"], kept(tmp_path)[:1], (), tmp_path, untold) is None
