"""Samples for which a model gives NaN or infinity."""

from __future__ import annotations

import torch

from kdq_core.tensors import Batch, Outputs
from kdq_core.training.finite import odd_samples, why_odd


def test_a_sample_is_odd_if_any_output_of_it_holds_nan_or_infinity() -> None:
    batch = Batch((torch.zeros(4, 1),), None, torch.tensor([30, 31, 32, 33]))
    logits, more = torch.zeros(4, 2, 3), torch.zeros(4, 2)
    logits[1, 1, 2], more[3, 0] = torch.nan, -torch.inf
    assert odd_samples(Outputs(logits), batch) == [31]
    assert odd_samples(Outputs(logits, tasks={"a": logits, "b": more, "c": torch.arange(4)}), batch) == [31, 33]
    assert odd_samples(Outputs(torch.zeros(4, 2)), batch) == []


def test_few_odd_samples_point_to_the_data_and_many_to_the_model() -> None:
    assert why_odd("the teacher", [3, 9], "test", 40) == (
        "the teacher gives NaN or infinity for 2 of 40 samples of the split 'test', first for sample 3; let the model "
        "answer for such a sample, for instance a sentence whose mask is all zero, or drop it from the data"
    )
    assert why_odd("the teacher", list(range(30)), "test", 40) == (
        "the teacher gives NaN or infinity for 30 of 40 samples of the split 'test', first for sample 0; look for a "
        "division by zero or a logarithm of zero in the model"
    )
