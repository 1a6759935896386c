"""The evaluator `ranking` against scikit-learn and by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdq_core.api import Batch, StageError, TensorSpec
from kdq_evaluators.ranking import Ranking


def named(metrics):
    return {metric.name: metric for metric in metrics}


@pytest.fixture
def problem():
    random = np.random.default_rng(0)
    scores = random.normal(size=(60, 30)).astype(np.float32)
    labels = (random.random((60, 30)) < 0.1).astype(np.float32)
    scores += labels
    return scores, labels


def test_gains_and_hits_equal_independent_computations(subject, table, problem):
    from sklearn.metrics import ndcg_score

    scores, labels = problem
    student, int8 = subject("student", lambda x: x), subject("int8", lambda x: np.round(2 * x))
    found = named(Ranking(k=5).evaluate(student, student, table(scores, labels)))
    some = labels.any(1)
    order = np.argsort(-scores, axis=1)
    ranked = np.take_along_axis(labels, order, 1)[some]
    assert found["hr_at_k"].value == pytest.approx(ranked[:, :5].any(1).mean())
    assert found["ndcg_at_k"].value == pytest.approx(ndcg_score(labels[some], scores[some], k=5), abs=1e-6)
    assert found["mrr"].value == pytest.approx((1 / (1 + ranked.argmax(1))).mean(), abs=1e-6)
    assert found["hr_at_k"].samples == some.sum()
    other = named(Ranking(k=5).evaluate(int8, student, table(scores, labels)))
    assert other["ndcg_difference"].value == pytest.approx(other["ndcg_at_k"].value - found["ndcg_at_k"].value)
    assert other["hr_difference"].value == pytest.approx(other["hr_at_k"].value - found["hr_at_k"].value)
    for metric in other.values():
        assert metric.low <= metric.value <= metric.high


def test_one_relevant_item_may_be_its_number(subject, table, problem):
    scores, _ = problem
    items = np.arange(60) % 30
    student = subject("student", lambda x: x)
    by_number = Ranking().evaluate(student, student, table(scores, items))
    assert by_number == Ranking().evaluate(student, student, table(scores, np.eye(30, dtype=np.float32)[items]))


def test_samples_of_one_score_are_grouped_by_an_input(subject, table, problem):
    scores, labels = problem
    whole = Ranking().evaluate(*[subject("student", lambda x: x)] * 2, table(scores, labels))
    random = np.random.default_rng(1)
    order = random.permutation(scores.size)
    users, flat, wanted = np.repeat(np.arange(60), 30)[order], scores.reshape(-1)[order], labels.reshape(-1)[order]

    def batches(extra):
        for ids in torch.arange(len(order)).split(200):
            user = torch.tensor(users)[ids]
            values = torch.tensor(flat)[ids, None]
            inputs = (values,) if extra else (values, user)
            yield Batch(inputs, torch.tensor(wanted)[ids], ids, extra={"user": user} if extra else {})

    student = subject("student", lambda x, *_: x)
    found = Ranking(query="user").evaluate(student, student, lambda: batches(True))
    specs = tuple(TensorSpec(name=name, dtype="int64", shape=(-1,)) for name in ("item", "user"))
    target = student.target.model_copy()
    object.__setattr__(target, "signature", lambda path: (specs, specs[:1]))
    again = replace(student, target=target)
    for one in (found, Ranking(query="user").evaluate(again, again, lambda: batches(False))):
        assert [(m.name, pytest.approx(m.value), m.samples) for m in whole] == [
            (m.name, m.value, m.samples) for m in one
        ]
    with pytest.raises(StageError) as caught:
        Ranking(query="reader").evaluate(student, student, lambda: batches(True))
    assert str(caught.value) == (
        "evaluator 'ranking' groups samples by the input 'reader', which the batches do not have; they have: user"
    )


def test_other_forms_are_refused(subject, table, problem):
    scores, labels = problem
    student = subject("student", lambda x: x)
    with pytest.raises(StageError) as caught:
        Ranking().evaluate(student, student, table(scores[:, :1], labels[:, 0]))
    assert str(caught.value) == (
        "evaluator 'ranking' reads scores [N, C] with labels [N] or [N, C], or scores [N] with labels [N] and a query "
        "each, but the first output of 'student.onnx' is [60, 1] and the labels are [60]; give one of these forms, "
        "with its option 'query', or leave 'ranking' out of 'evaluate'"
    )
    with pytest.raises(StageError) as caught:
        Ranking().evaluate(student, student, table(scores))
    assert str(caught.value) == (
        "evaluator 'ranking' compares with labels, but a test batch has no `targets`; give them, or leave 'ranking' "
        "out of 'evaluate'"
    )
    with pytest.raises(StageError) as caught:
        Ranking(relevant=4).evaluate(student, student, table(scores, labels))
    assert str(caught.value) == (
        "evaluator 'ranking' looks for items whose label is at least 4, but the test split has none; lower its option "
        "'relevant', or give such labels"
    )
