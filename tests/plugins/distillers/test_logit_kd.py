"""Golden values and laws of the distiller `logit-kd`."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdq_core.api import Batch, Outputs
from kdq_distillers.logit_kd import LogitKd


def batch(samples):
    return Batch(inputs=(torch.zeros(samples, 1),), targets=None, ids=torch.arange(samples))


def soft(student, teacher, **options):
    student, teacher = torch.as_tensor(student), torch.as_tensor(teacher)
    return LogitKd(**options).loss(Outputs(student), Outputs(teacher), batch(len(student))).terms["kd"]


def independent_kd(student, teacher, temperature):
    """T^2 * batch mean of KL(p || q) in float64, written from the definition with probabilities."""

    def softmax(z):
        e = np.exp(z.astype(np.float64) / temperature - (z / temperature).max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p, q = softmax(teacher), softmax(student)
    return temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_soft_loss_equals_an_independent_computation_in_float64(temperature):
    random = np.random.default_rng(0)
    student, teacher = random.normal(0, 3, (2, 64, 10)).astype(np.float32)
    expected = independent_kd(student, teacher, temperature)
    assert float(soft(student, teacher, alpha=1.0, temperature=temperature)) == pytest.approx(expected, rel=1e-5)


def test_the_soft_loss_of_an_example_worked_by_hand():
    # Teacher probabilities 3/4, 1/4; student 1/2, 1/2: KL = ln 2 - (entropy of the teacher) = 3/4 ln 3 - ln 2.
    found = soft([[0.0, 0.0]], [[math.log(3.0), 0.0]], alpha=1.0, temperature=1.0)
    assert float(found) == pytest.approx(0.75 * math.log(3) - math.log(2), abs=1e-7)
    assert float(found) == pytest.approx(0.1308120, abs=1e-6)


def test_for_large_temperature_the_gradient_is_the_difference_of_centred_logits():
    torch.manual_seed(0)
    student, teacher = (z - z.mean(1, keepdim=True) for z in torch.randn(2, 6, 10, dtype=torch.float64).unbind())
    student.requires_grad_()
    soft(student, teacher, alpha=1.0, temperature=100.0).backward()
    limit = (student.detach() - teacher) / 10 / 6  # 10 classes; mean over 6 samples
    torch.testing.assert_close(student.grad, limit, rtol=0.05, atol=5e-4)


def test_the_size_of_the_gradient_hardly_depends_on_a_large_temperature():
    torch.manual_seed(0)
    norms = []
    for temperature in (20.0, 80.0):
        student = torch.randn(6, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
        teacher = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))
        soft(student, teacher, alpha=1.0, temperature=temperature).backward()
        norms.append(float(student.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_equal_models_give_exactly_zero():
    logits = torch.randn(8, 10)
    assert float(soft(logits, logits)) == 0.0


def test_alpha_weighs_the_soft_term_and_leaves_the_rest_to_the_labels():
    student, teacher = torch.randn(8, 10), torch.randn(8, 10)
    whole = float(soft(student, teacher, alpha=1.0))
    terms = LogitKd(alpha=0.25).loss(Outputs(student), Outputs(teacher), batch(8))
    assert float(terms.terms["kd"]) == pytest.approx(0.25 * whole, rel=1e-6)
    assert terms.hard_weight == 0.75


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.01, 4.0, 100.0])
def test_logits_of_ten_thousand_give_finite_loss_and_gradient(dtype, temperature):
    student = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = soft(student, torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype), temperature=temperature)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def independent_standardized(z):
    z = z.astype(np.float64)
    return (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_standardized_it_equals_an_independent_computation_in_float64(pair, temperature):
    expected = independent_kd(*(independent_standardized(z) for z in pair), temperature)
    found = soft(*pair, alpha=1.0, temperature=temperature, standardize=True)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_standardized_logits_of_an_example_worked_by_hand():
    # Two classes become +1 and -1 whatever they were: probabilities e^2 / (e^2 + 1) against 1 / (e^2 + 1).
    p = math.exp(2) / (math.exp(2) + 1)
    found = soft([[0.0, 5.0]], [[0.3, 0.1]], alpha=1.0, temperature=1.0, standardize=True)
    assert float(found) == pytest.approx((2 * p - 1) * math.log(p / (1 - p)), rel=1e-4)


def test_standardized_logits_ignore_scale_and_shift(pair):
    student = pair[0]
    assert float(soft(student, 7 * student + 3, standardize=True)) == pytest.approx(0, abs=1e-6)
    assert float(soft(student, 7 * student + 3)) > 0.1


def test_standardized_logits_without_variance_give_a_finite_gradient():
    student = torch.zeros(2, 5, requires_grad=True)
    soft(student, torch.arange(10.0).reshape(2, 5), standardize=True).backward()
    assert student.grad.isfinite().all()
    assert float(student.grad.abs().max()) > 0


@pytest.mark.parametrize(
    "options", [{"alpha": 1.1}, {"alpha": -0.1}, {"temperature": 0}, {"temperature": 101}, {"beta": 1}]
)
def test_options_out_of_range_or_unknown_are_refused(options):
    with pytest.raises(ValidationError):
        LogitKd(**options)
