"""Golden values and laws of the distiller `token-kd`."""

import math

import numpy as np
import pytest
import torch

from kdq_core.api import Batch, Outputs, StageError
from kdq_distillers.logit_kd import LogitKd
from kdq_distillers.token_kd import TokenKd


def run(distiller, student, teacher, targets=None, inputs=()):
    student, teacher = torch.as_tensor(student), torch.as_tensor(teacher)
    batch = Batch(tuple(map(torch.as_tensor, inputs)), targets, torch.arange(len(student)))
    return distiller.loss(Outputs(student), Outputs(teacher), batch)


@pytest.fixture
def sequences():
    return np.random.default_rng(0).normal(0, 2, (2, 4, 6, 5)).astype(np.float32)


def kl(student, teacher, temperature, real):
    q, p = (np.exp(z.astype(np.float64) / temperature) for z in (student, teacher))
    q, p = q / q.sum(-1, keepdims=True), p / p.sum(-1, keepdims=True)
    return temperature**2 * (p * np.log(p / q)).sum(-1)[real].mean()


REAL = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]], bool)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_equals_an_independent_computation_in_float64(sequences, temperature):
    student, teacher = sequences
    expected = 0.7 * kl(student, teacher, temperature, REAL)
    distiller = TokenKd(alpha=0.7, temperature=temperature, padding_input=1)
    found = run(distiller, student, teacher, inputs=(np.zeros(4), REAL.astype(np.int64)))
    assert list(found.terms) == ["token"]
    assert float(found.terms["token"]) == pytest.approx(expected, rel=1e-5)
    assert found.hard_weight == pytest.approx(0.3)
    labels = torch.from_numpy(np.where(REAL, 2, -100))
    by_labels = run(TokenKd(alpha=0.7, temperature=temperature), student, teacher, labels)
    assert float(by_labels.terms["token"]) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_an_example_worked_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2 at the one real position.
    teacher, student = [[[math.log(3), 0.0], [9.0, 9.0]]], [[[0.0, 0.0], [0.0, 5.0]]]
    found = run(TokenKd(alpha=1.0, padding_input=0, padding_value=7), student, teacher, inputs=([[1, 7]],))
    assert float(found.terms["token"]) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)


def test_without_padding_it_is_logit_kd_over_all_positions(sequences, terms):
    student, teacher = sequences
    flat = terms(LogitKd(alpha=0.5, temperature=2.0), student.reshape(-1, 5), teacher.reshape(-1, 5))
    found = run(TokenKd(temperature=2.0), student, teacher)
    assert float(found.terms["token"]) == pytest.approx(float(flat.terms["kd"]), rel=1e-6)


def test_padding_gets_no_gradient_and_may_be_nan(sequences):
    student = torch.tensor(sequences[0], requires_grad=True)
    teacher = torch.tensor(sequences[1]).masked_fill(~torch.from_numpy(REAL)[..., None], float("nan"))
    run(TokenKd(padding_input=0), student, teacher, inputs=(REAL,)).terms["token"].backward()
    assert not student.grad[~torch.from_numpy(REAL)].any()
    assert student.grad.isfinite().all()


def test_a_batch_of_nothing_but_padding_gives_zero(sequences):
    student = torch.tensor(sequences[0], requires_grad=True)
    term = run(TokenKd(padding_input=0), student, sequences[1], inputs=(np.zeros((4, 6)),)).terms["token"]
    term.backward()
    assert float(term.detach()) == 0
    assert not student.grad.any()


def test_a_padding_input_that_does_not_fit_is_named(sequences):
    with pytest.raises(StageError) as caught:
        run(TokenKd(padding_input=1), *sequences, inputs=(np.zeros((4, 6)),))
    assert str(caught.value) == (
        "distiller 'token-kd' reads padding from input 1, but the model has 1 inputs, counted from 0; correct "
        "'padding_input'"
    )
    with pytest.raises(StageError, match=r"from input 0 of shape \(4, 7\), but the logits have positions \(4, 6\)"):
        run(TokenKd(padding_input=0), *sequences, inputs=(np.zeros((4, 7)),))


def test_other_classes_are_named_on_both_sides(sequences):
    with pytest.raises(StageError) as caught:
        run(TokenKd(), sequences[0], sequences[1][..., :4])
    assert str(caught.value) == (
        "distiller 'token-kd' compares logits [samples, positions, classes] of one shape, but the student's are "
        "(4, 6, 5) and the teacher's (4, 6, 4); give both models one tokenizer and the same classes"
    )
