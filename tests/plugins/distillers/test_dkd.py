"""Golden values and laws of the distiller `dkd`."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdq_core.api import StageError
from kdq_distillers.dkd import Dkd
from kdq_distillers.logit_kd import LogitKd

LABELS = np.arange(64) % 10


def kl(p, q):
    return np.sum(p * np.log(p / q))


def independent_dkd(student, teacher, labels, temperature):
    """TCKD and NCKD, T^2 and batch mean, sample by sample from probabilities in float64."""

    def split(z, label):
        p = np.exp(z.astype(np.float64) / temperature)
        p /= p.sum()
        rest = np.delete(p, label)
        return np.array([p[label], rest.sum()]), rest / rest.sum()

    target, among = [], []
    for s, t, label in zip(student, teacher, labels):
        (ours, our_rest), (theirs, their_rest) = split(s, label), split(t, label)
        target.append(kl(theirs, ours))
        among.append(kl(their_rest, our_rest))
    return temperature**2 * np.mean(target), temperature**2 * np.mean(among)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_both_terms_equal_an_independent_computation_in_float64(terms, pair, temperature):
    target, among = independent_dkd(*pair, LABELS, temperature)
    found = terms(Dkd(alpha=2.0, beta=3.0, temperature=temperature), *pair, LABELS).terms
    assert list(found) == ["tckd", "nckd"]
    assert float(found["tckd"]) == pytest.approx(2 * target, rel=1e-4)
    assert float(found["nckd"]) == pytest.approx(3 * among, rel=1e-4)


def test_the_loss_of_an_example_worked_by_hand(terms):
    # Label 0. Teacher 1/2, 3/8, 1/8; student 1/4, 3/8, 3/8.
    # TCKD = 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3). NCKD: 3/4, 1/4 against 1/2, 1/2 = 3/4 ln 3 - ln 2.
    student, teacher = np.log([[0.25, 0.375, 0.375]]), np.log([[0.5, 0.375, 0.125]])
    found = terms(Dkd(alpha=1.0, beta=1.0, temperature=1.0), student, teacher, [0]).terms
    assert float(found["tckd"]) == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)
    assert float(found["nckd"]) == pytest.approx(0.75 * math.log(3) - math.log(2), abs=1e-6)


def test_with_the_weights_that_couple_them_the_terms_add_up_to_hinton(terms, pair):
    student, teacher = (z[:1] for z in pair)
    odds = np.exp(teacher[0].astype(np.float64) / 4)
    coupled = Dkd(alpha=1.0, beta=1 - odds[3] / odds.sum(), temperature=4.0)
    found = sum(float(term) for term in terms(coupled, student, teacher, [3]).terms.values())
    hinton = float(terms(LogitKd(alpha=1.0, temperature=4.0), student, teacher).terms["kd"])
    assert found == pytest.approx(hinton, rel=1e-5)


def test_two_classes_have_nothing_among_the_others_and_one_class_nothing_at_all(terms, pair):
    two = terms(Dkd(), pair[0][:, :2], pair[1][:, :2], LABELS % 2).terms
    assert float(two["nckd"]) == 0
    assert float(two["tckd"]) > 0
    one = terms(Dkd(), pair[0][:, :1], pair[1][:, :1], LABELS * 0).terms
    assert [float(term) for term in one.values()] == [0, 0]


def test_the_gradient_of_the_other_classes_leaves_the_label_alone(terms, pair):
    student = torch.tensor(pair[0], requires_grad=True)
    terms(Dkd(alpha=0.0, beta=1.0), student, pair[1], LABELS).terms["nckd"].backward()
    at_label = student.grad[torch.arange(64), torch.as_tensor(LABELS)]
    assert float(at_label.abs().max()) == 0
    assert float(student.grad.abs().max()) > 0.001


def test_the_defaults_are_those_of_the_authors_code(terms, pair):
    assert Dkd().model_dump() == {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "hard_weight": 1.0}
    assert terms(Dkd(hard_weight=0.3), *pair, LABELS).hard_weight == 0.3


def test_an_unlabelled_batch_is_refused(terms, pair):
    with pytest.raises(StageError) as caught:
        terms(Dkd(), *pair)
    assert str(caught.value) == (
        "distiller 'dkd' needs a label for each sample, but the batch of 64 samples has none; "
        "label the data, or use a distiller that needs none, such as 'logit-kd'"
    )


@pytest.mark.parametrize(
    ("labels", "shape"),
    [(torch.zeros(64, 10), "(64, 10) and type float32"), (torch.zeros(63, dtype=torch.int64), "(63,) and type int64")],
)
def test_labels_that_are_not_one_class_a_sample_are_refused(terms, pair, labels, shape):
    with pytest.raises(StageError) as caught:
        terms(Dkd(), *pair, labels)
    assert str(caught.value) == (
        f"distiller 'dkd' needs one class number a sample, shape (64,), but the labels have shape {shape}; "
        "use a distiller that needs none, such as 'logit-kd'"
    )


@pytest.mark.parametrize(("wrong", "ends"), [(-100, "-100 to 9"), (10, "0 to 10")])
def test_labels_that_are_no_classes_are_refused(terms, pair, wrong, ends):
    with pytest.raises(StageError) as caught:
        terms(Dkd(), *pair, np.where(np.arange(64) == 20, wrong, LABELS))
    assert str(caught.value) == (
        "distiller 'dkd' needs labels from 0 to 9, because the models give 10 logits, but the labels go from "
        f"{ends}; correct the workload's labels, or use a distiller that needs none, such as 'logit-kd'"
    )


@pytest.mark.parametrize("options", [{"alpha": -1}, {"beta": 1001}, {"temperature": 0}, {"hard_weight": -0.1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        Dkd(**options)
