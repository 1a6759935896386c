"""What all distillers on logits refuse, and what no logits may break."""

import math

import pytest
import torch

from kdq_core.api import StageError
from kdq_core.plugins.catalog import Catalog

DISTILLERS = ("dist", "dkd", "hard-label", "logistic", "logit-kd", "mixed-kd", "mse-logits", "multi-label-kd")


@pytest.fixture(params=DISTILLERS)
def named(request):
    return request.param, Catalog.load().build("distiller", request.param)


def test_different_class_counts_are_refused_with_both_shapes(named, terms):
    name, distiller = named
    with pytest.raises(StageError) as caught:
        terms(distiller, torch.zeros(4, 10), torch.zeros(4, 12), [0, 1, 2, 3])
    assert str(caught.value) == (
        f"distiller {name!r} compares logits of one shape, but the student's are (4, 10) and the teacher's (4, 12); "
        "give both models the same classes and the same batch"
    )


def test_logits_for_each_place_of_a_sequence_are_refused(named, terms):
    name, distiller = named
    with pytest.raises(StageError) as caught:
        terms(distiller, torch.zeros(4, 7, 10), torch.zeros(4, 7, 10), [0, 1, 2, 3])
    assert str(caught.value) == (
        f"distiller {name!r} needs logits [samples, classes], but those of student and teacher are (4, 7, 10); "
        "give one row of logits a sample"
    )


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_teacher_that_is_not_finite_is_refused(named, terms, poison):
    name, distiller = named
    teacher = torch.zeros(2, 3)
    teacher[1, 2] = poison
    with pytest.raises(StageError) as caught:
        terms(distiller, torch.zeros(2, 3), teacher, [0, 1])
    assert str(caught.value) == (
        f"distiller {name!r} needs finite teacher logits, but 1 of 6 are NaN or infinite; "
        "train the teacher with a lower learning rate or with 'clip_norm', or check the file it was read from"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_float32_terms_and_gradients(named, terms, dtype):
    student = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, 0.0, -1e4]], dtype=dtype, requires_grad=True)
    values = list(terms(named[1], student, teacher, [1, 0]).terms.values())
    torch.stack(values).sum().backward()
    assert {value.dtype for value in values} == {torch.float32}
    assert all(value.isfinite() for value in values)
    assert student.grad.isfinite().all()
    assert teacher.grad is None


@pytest.mark.parametrize("shape", [(1, 10), (8, 1), (1, 1), (8, 2)])
def test_small_batches_and_few_classes_give_finite_gradients(named, terms, shape):
    random = torch.Generator().manual_seed(0)
    student = torch.randn(shape, generator=random).requires_grad_()
    values = terms(named[1], student, torch.randn(shape, generator=random), [0] * shape[0]).terms.values()
    torch.stack(list(values)).sum().backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", ["dist", "dkd", "logistic", "logit-kd", "mse-logits", "multi-label-kd"])
def test_equal_models_give_exactly_zero_and_no_gradient(name, terms):
    student = torch.randn(8, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = terms(Catalog.load().build("distiller", name), student, student.detach(), [0] * 8).terms.values()
    torch.stack(list(values)).sum().backward()
    assert [float(value.detach()) for value in values] == [0.0] * len(values)
    assert float(student.grad.abs().max()) < 1e-6
