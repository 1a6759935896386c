"""A teacher beside the student: whatever state it is handed over in, it is a constant to learn from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdq_core.teachers.source import OnlineTeacher
from kdq_core.tensors import Batch

TAPPED = ("1", "2", "4")


@pytest.fixture
def model() -> nn.Module:
    """Dropout and batch norm, in training mode, with parameters that ask for gradients."""
    torch.manual_seed(1)
    made = nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 8), nn.Linear(8, 5)
    )
    assert all(module.training for module in made.modules())
    assert all(parameter.requires_grad for parameter in made.parameters())
    return made


@pytest.fixture
def batch() -> Batch:
    """Inputs far from what batch norm's statistics start with, which themselves ask for gradients."""
    x = (3 + 2 * torch.randn(32, 4, generator=torch.Generator().manual_seed(2))).requires_grad_()
    return Batch((x,), torch.zeros(32, dtype=torch.int64), torch.arange(32))


def test_a_teacher_handed_over_in_training_mode_says_the_same_twice(model: nn.Module, batch: Batch) -> None:
    online = OnlineTeacher(model)
    first, second = online(batch, TAPPED), online(batch, TAPPED)
    assert torch.equal(first.logits, second.logits)
    assert all(torch.equal(first.features[path], second.features[path]) for path in TAPPED)
    first_layer = model.get_submodule("0")(batch.inputs[0]).detach()
    torch.testing.assert_close(first.features["1"], first_layer / (1 + 1e-5) ** 0.5)  # batch norm's of 0 and 1


def test_a_teacher_that_is_asked_keeps_its_statistics_and_weights(model: nn.Module, batch: Batch) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    online = OnlineTeacher(model)
    for _ in range(3):
        online(batch, TAPPED)
    after = model.state_dict()
    assert "1.running_mean" in before
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []


def test_nothing_of_a_teacher_asks_for_gradients(model: nn.Module, batch: Batch) -> None:
    given = OnlineTeacher(model)(batch, TAPPED)
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    told = {"logits": given.logits, **given.features}
    assert not [name for name, value in told.items() if value.requires_grad or value.grad_fn is not None]


def test_a_student_that_learns_from_a_teacher_leaves_it_no_gradient(model: nn.Module, batch: Batch) -> None:
    student, online = nn.Linear(4, 5), OnlineTeacher(model)
    (student(batch.inputs[0]) - online(batch).logits).square().mean().backward()
    assert student.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    slope = 2 * (student(batch.inputs[0]) - online(batch).logits).detach() / (32 * 5) @ student.weight.detach()
    torch.testing.assert_close(batch.inputs[0].grad, slope)  # through the student alone
