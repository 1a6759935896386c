"""Several distillers, their weights and schedules."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from kdq_core.distillation.combining import DistillationLoss
from kdq_core.distillation.distance import distance
from kdq_core.distillation.parts import Part
from kdq_core.errors import StageError
from kdq_core.plugins.kinds import Distiller
from kdq_core.recipe.schedule import Schedule
from kdq_core.recipe.spec import FitSpec
from kdq_core.tensors import Batch, LossTerms
from kdq_core.training.fit import FitHooks, fit
from kdq_core.training.resume import tensors_of
from kdq_core.worker.main import named


class Constant(Distiller):
    """Soft loss `value`, whatever the models say, so that sums can be done by hand."""

    value: float = 1.0
    hard: float = 0.0

    def loss(self, student, teacher, batch):
        return LossTerms({"soft": self.value + 0 * student.logits.sum()}, self.hard)


class Labelled(Constant):
    needs_labels: ClassVar[bool] = True


class Pull(Distiller):
    """Mean squared difference, times an option."""

    strength: float = 1.0

    def loss(self, student, teacher, batch):
        return LossTerms({"pull": self.strength * (student.logits - teacher.logits).square().mean()}, 0.5)


def constant(value):
    return Schedule(schedule="constant", start=value)


def a_batch(labelled=True, samples=6):
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(samples))
    return Batch((x,), torch.arange(samples) % 3 if labelled else None, torch.arange(samples))


@pytest.fixture
def student(seeded):
    return seeded(lambda: nn.Linear(4, 3), 1).requires_grad_(requires_grad=False)


@pytest.fixture
def combined(numbers, online, seeded):
    """Makes the loss of some parts."""
    teacher = online(seeded(lambda: nn.Linear(4, 3), 2))
    return lambda *parts: DistillationLoss(numbers, parts, teacher)


def test_one_distiller_of_weight_one_is_its_own_loss(combined, student, numbers):
    batch = a_batch()
    terms = combined(Part("x", Constant(value=2.0, hard=0.3)))(student, batch)
    assert list(terms) == ["soft", "hard"]
    hard = nn.functional.cross_entropy(student(*batch.inputs), batch.targets)
    assert float(terms["soft"]) == 2.0
    assert float(terms["hard"]) == pytest.approx(0.3 * float(hard), rel=1e-6)


def test_the_combined_loss_of_an_example_worked_by_hand(combined, student):
    # H = (1 - 0.5 * (1 - 0.1)) * (1 - 1 * (1 - 0.4)) = 0.55 * 0.4 = 0.22; soft terms 0.5 * 2 and 3 * 5.
    parts = (
        Part("a", Constant(value=2.0, hard=0.1), constant(0.5)),
        Part("b", Constant(value=5.0, hard=0.4), constant(3.0)),
    )
    batch = a_batch()
    terms = combined(*parts)(student, batch)
    assert list(terms) == ["a/soft", "b/soft", "hard"]
    assert [float(terms[name]) for name in ("a/soft", "b/soft")] == [1.0, 15.0]
    hard = nn.functional.cross_entropy(student(*batch.inputs), batch.targets)
    assert float(terms["hard"]) == pytest.approx(0.22 * float(hard), rel=1e-6)


@pytest.mark.parametrize("at", [0.0, 1.0])
def test_the_loss_is_continuous_in_every_weight(combined, student, at):
    def loss(weight):
        parts = Part("a", Constant(value=2.0, hard=0.1), constant(weight)), Part("b", Constant(hard=0.4))
        return float(sum(combined(*parts)(student, a_batch()).values()))

    near = [loss(at), loss(at + 1e-6), loss(abs(at - 1e-6))]
    assert max(near) - min(near) < 1e-4


def test_at_weight_zero_a_distiller_is_as_if_it_were_not_there(combined, student):
    batch, other = a_batch(), Part("b", Constant(hard=0.4))
    terms = combined(Part("a", Constant(value=7.0, hard=0.1), constant(0.0)), other)(student, batch)
    alone = combined(other)(student, batch)
    assert float(sum(terms.values())) == pytest.approx(float(sum(alone.values())), rel=1e-6)
    nothing = combined(Part("a", Constant(hard=0.1), constant(0.0)))(student, batch)
    hard = nn.functional.cross_entropy(student(*batch.inputs), batch.targets)
    assert float(sum(nothing.values())) == pytest.approx(float(hard), rel=1e-6)


def test_an_unlabelled_batch_has_no_hard_term(combined, student):
    assert list(combined(Part("x", Constant(hard=0.3)))(student, a_batch(labelled=False))) == ["soft"]


def test_a_distiller_that_needs_labels_says_so_on_a_batch_without(combined, student):
    loss = combined(Part("dkd", Labelled()))
    assert list(loss(student, a_batch())) == ["soft"]
    with pytest.raises(StageError) as caught:
        loss(student, a_batch(labelled=False))
    assert str(caught.value) == (
        "distiller 'dkd' needs a label for each sample, but the workload gave a batch of 6 samples without labels; "
        "label the data, or use a distiller that needs none, such as 'logit-kd'"
    )


def test_what_changes_over_a_fit_has_a_curve(combined, student):
    moving = Schedule(schedule="linear", start=4.0, end=0.0)
    parts = (
        Part("pull", Pull(strength=2.0), weight=moving, options={"strength": Schedule(schedule="constant", start=2.0)}),
        Part("other", Pull(), options={"strength": Schedule(schedule="cosine", start=1.0, end=3.0)}),
        Part("still", Constant()),
    )
    loss = combined(*parts)
    loss.before_step(2, 5)
    loss(student, a_batch())
    assert loss.scheduled == {"schedule/pull/weight": 2.0, "schedule/other/strength": pytest.approx(2.0)}
    alone = combined(parts[0])
    alone.before_step(4, 5)
    alone(student, a_batch())
    assert alone.scheduled == {"schedule/weight": 0.0}


class Mistaken(Constant):
    """Reads labels without saying so, or gives something else than terms."""

    gives: str = ""

    def loss(self, student, teacher, batch):
        return {"soft": student.logits.sum()} if self.gives else batch.targets[0] * student.logits.sum()


def test_a_mistake_of_a_distiller_is_told_with_its_name(combined, student):
    with pytest.raises(TypeError) as raised:
        combined(Part("mine", Mistaken()))(student, a_batch(labelled=False))
    given = str(named(raised.value))
    assert given.startswith(f"TypeError: 'NoneType' object is not subscriptable (in {__file__}:")
    assert given.endswith(
        "); the distiller 'mine' raised it, given a batch without labels: one that needs labels says needs_labels = "
        "True"
    )
    with pytest.raises(StageError) as caught:
        combined(Part("mine", Mistaken(gives="dict")))(student, a_batch())
    assert str(caught.value) == (
        "distiller 'mine' gave a 'dict'; its loss() must give LossTerms(terms={'name': scalar}, hard_weight=...) of "
        "kdq_core.api"
    )


GIVEN = {
    "no term": LossTerms({}, 1.0),
    "the term 'soft' of shape (2,)": LossTerms({"soft": torch.ones(2)}, 1.0),
    "the term 'soft' as a 'float'": LossTerms({"soft": 1.0}, 1.0),
    "the hard weight -1.0": LossTerms({"soft": torch.ones(())}, -1.0),
    "the hard weight nan": LossTerms({"soft": torch.ones(())}, math.nan),
}


class Gives(Distiller):
    what: str

    def loss(self, student, teacher, batch):
        return GIVEN[self.what]


@pytest.mark.parametrize("what", GIVEN)
def test_what_is_no_loss_is_told_with_the_name_of_the_distiller(combined, student, what):
    with pytest.raises(StageError) as caught:
        combined(Part("mine", Gives(what=what)))(student, a_batch())
    assert str(caught.value) == (
        f"distiller 'mine' gave {what}; its loss() must give LossTerms(terms={{'name': scalar}}, hard_weight=...) of "
        "kdq_core.api"
    )


class Named(Constant):
    """Calls its term as it is told."""

    term: str = "soft"

    def loss(self, student, teacher, batch):
        return LossTerms({self.term: self.value + 0 * student.logits.sum()}, self.hard)


@pytest.mark.parametrize("term", ["hard", "loss", "quantization"])
def test_a_term_under_the_name_of_a_curve_of_the_training_is_refused(combined, student, term):
    with pytest.raises(StageError) as caught:
        combined(Part("mine", Named(term=term)))(student, a_batch())
    assert str(caught.value) == (
        f"a distiller gave a term called {term!r}, and that is the name of a curve of the training itself; call it "
        "something else in `terms`"
    )
    both = combined(Part("mine", Named(term=term)), Part("other", Constant()))
    assert list(both(student, a_batch(labelled=False))) == [f"mine/{term}", "other/soft"]  # a name of its own


def test_a_term_of_weight_zero_that_is_not_finite_does_no_harm(combined, student):
    endless, other = Part("a", Constant(value=math.inf), constant(0.0)), Part("b", Constant(value=2.0))
    assert float(sum(combined(endless, other)(student, a_batch()).values())) == 2.0
    seen = combined(replace(endless, weight=constant(0.5)), other)(student, a_batch())
    assert float(sum(seen.values())) == math.inf


class Product(Distiller):
    """Says in what type its sums are."""

    def loss(self, student, teacher, batch):
        assert student.logits.dtype == teacher.logits.dtype == torch.float32
        return LossTerms({"soft": ((student.logits @ student.logits.T).float() - 1).square().mean()}, 0.0)


def test_distillers_compute_in_float32_also_where_the_models_compute_in_bf16(combined, student):
    loss, batch = combined(Part("mine", Product())), a_batch()
    with torch.autocast("cpu", torch.bfloat16):
        (term,) = loss(student, batch).values()
        logits = student(*batch.inputs)
    assert logits.dtype == torch.bfloat16
    wanted = (logits.double() @ logits.double().T - 1).square().mean()
    assert float(term) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(schedule="constant", start=3.0), [3, 3, 3, 3, 3]),
        (Schedule(schedule="linear", start=3.0, end=1.0), [3, 2.5, 2, 1.5, 1]),
        (Schedule(schedule="cosine", start=3.0, end=1.0), [3, 2 + math.sqrt(0.5), 2, 2 - math.sqrt(0.5), 1]),
    ],
)
def test_weights_and_options_follow_their_schedule_over_the_steps(combined, student, schedule, expected):
    batch = a_batch()
    base = float(combined(Part("x", Pull()))(student, batch)["pull"])
    for part in (Part("x", Pull(), weight=schedule), Part("x", Pull(), options={"strength": schedule})):
        loss, seen = combined(part), []
        for done in range(5):
            loss.before_step(done, 5)
            seen.append(float(loss(student, batch)["pull"]) / base)
        assert seen == pytest.approx(expected, rel=1e-6)


def test_a_schedule_of_the_distance_follows_what_the_models_disagree_in(combined, student):
    batch = a_batch()
    loss = combined(Part("x", Constant(), Schedule(schedule="gap", start=4.0, end=1.0)))
    between = distance(student(*batch.inputs), loss.teacher(batch).logits)
    assert 0.05 < between < 0.95
    assert float(loss(student, batch)["soft"]) == pytest.approx(1 + 3 * between, rel=1e-6)
    equal = loss.teacher.model
    assert float(loss(equal, batch)["soft"]) == pytest.approx(1.0)


def test_the_distance_equals_an_independent_computation():
    student, teacher = np.random.default_rng(0).normal(0, 2, (2, 9, 4, 5))
    q, p = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (student, teacher))
    found = distance(torch.from_numpy(student), torch.from_numpy(teacher))
    assert found == pytest.approx(np.abs(q - p).sum(-1).mean() / 2, rel=1e-5)
    # Ratings 1, 3 against 3, 3 + 4: mean squared difference 10, variance of the teacher 4.
    assert distance(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 7.0])) == pytest.approx(10 / 14)
    assert distance(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [1.0]])) == 0
    assert distance(torch.tensor([[50.0, -50.0]]), torch.tensor([[-50.0, 50.0]])) == pytest.approx(1)


def test_the_distance_of_labels_and_of_numbers_equals_an_independent_computation():
    student, teacher = np.random.default_rng(0).normal(0, 2, (2, 9, 4))
    ours, theirs = torch.from_numpy(student), torch.from_numpy(teacher)
    q, p = (1 / (1 + np.exp(-z)) for z in (student, teacher))
    assert distance(ours, theirs, "labels") == pytest.approx(np.abs(q - p).mean(), rel=1e-5)
    e, v = ((student - teacher) ** 2).mean(), teacher.var(0).mean()
    assert distance(ours, theirs, "numbers") == pytest.approx(e / (e + v), rel=1e-5)
    for reads in ("labels", "numbers"):  # a softmax would not see that they are 5 apart
        assert distance(theirs + 5, theirs, reads) > 0.2
        assert distance(theirs, theirs, reads) == 0


class OfNumbers(Constant):
    reads: ClassVar[str] = "numbers"


class OfFeatures(Constant):
    features: ClassVar[str] = "pairs"


def test_a_distiller_of_features_follows_the_distance_as_the_one_of_outputs_reads_it(combined, student):
    follows = Schedule(schedule="gap", start=1.0, end=0.0)
    batch = a_batch()
    for others, reads in (((), "classes"), ((Part("y", OfNumbers()),), "numbers")):
        loss = combined(Part("x", OfFeatures(), follows), *others)
        between = distance(student(*batch.inputs), loss.teacher(batch).logits, reads)
        name = "x/soft" if others else "soft"
        assert float(loss(student, batch)[name]) == pytest.approx(between, rel=1e-6)


def test_a_distance_between_other_classes_names_both(combined, seeded):
    loss = combined(Part("x", Pull(), Schedule(schedule="gap", start=4.0, end=1.0)))
    with pytest.raises(StageError) as caught:
        loss(seeded(lambda: nn.Linear(4, 5)), a_batch())
    assert str(caught.value) == (
        "the gap of a schedule is between outputs of one shape, but the student's are (6, 5) and the teacher's (6, 3); "
        "give both models the same classes"
    )


class StoppedError(Exception):
    pass


def test_a_resumed_fit_goes_on_in_the_schedule(combined, seeded, tmp_path):
    schedule = Schedule(schedule="linear", start=5.0, end=0.0)
    spec = FitSpec(epochs=3, batch_size=6, learning_rate=0.05)

    def run(model, before_epoch=lambda _epoch: None):
        loss = combined(Part("x", Pull(), schedule, {"strength": schedule}))
        hooks = FitHooks(before_epoch=before_epoch, before_step=loss.before_step)
        return fit(
            model, loss, lambda _epoch: [a_batch(), a_batch()], spec,
            samples=12, accelerator=Accelerator(cpu=True), hooks=hooks, resume=tmp_path / str(id(before_epoch)),
        )  # fmt: skip

    def stop(epoch):
        if epoch == 1 and not stopped:
            stopped.append(epoch)
            raise StoppedError

    stopped: list[int] = []
    whole = seeded(lambda: nn.Linear(4, 3), 1)
    history = run(whole)
    with pytest.raises(StoppedError):
        run(seeded(lambda: nn.Linear(4, 3), 1), stop)
    resumed = seeded(lambda: nn.Linear(4, 3), 3)
    assert run(resumed, stop) == history
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(resumed).values(), tensors_of(whole).values(), strict=True))
    assert history[-1].values["train/pull"] < history[0].values["train/pull"] / 20
