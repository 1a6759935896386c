"""The gain of a teacher: its student beside a control that was trained without it."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy import stats
from torch import nn
from torch.nn import functional as F

from kdq_core.errors import StageError
from kdq_core.plugins.kinds import Workload
from kdq_core.recipe.spec import FitSpec
from kdq_core.tensors import Batch
from kdq_core.training.fit import fit
from kdq_core.training.gains import gains, interval
from kdq_core.training.losses import curves as curves_of
from kdq_core.training.losses import hard_loss
from kdq_core.training.resume import tensors_of

EPOCHS = 3
FIT = {"epochs": EPOCHS, "batch_size": 32, "learning_rate": 0.02}
NO_TEACHER = [{"use": "logit-kd", "options": {"alpha": 0.0}}, {"use": "fitnet", "options": {"beta": 0.0}}]


@pytest.fixture
def run_of(stages_of, tiny, tmp_path):
    """Runs the stages of a recipe up to one of them."""

    def run(last="distill", home="home", distill=None, quantize=None, **options):
        made = stages_of(
            tmp_path / home,
            tiny,
            workload={"use": "digits", "options": options},
            teacher={"fit": FIT, "cache": {"views": 1}},
            distill={"fit": FIT, **(distill or {})},
            quantize={"use": "minmax-qat", "fit": FIT, **(quantize or {})},
        )
        for node in made.plan.nodes if last else ():
            made.stage(node.name)
            if node.name == last:
                return made
        assert last is None, last
        return made

    return run


def weights(run, stage):
    entry = run.entries[stage]
    return entry.sha256(entry.record.weights)


def curves(record, prefix):
    """The values of the epochs whose curves are called so, without what only one of the fits has."""
    chosen = record.history[EPOCHS:] if prefix else record.history[:EPOCHS]
    names = ("train/loss", "validation/loss", "validation/top1")
    return [[epoch.values[prefix + name] for name in names] for epoch in chosen]


@pytest.mark.parametrize("losses", NO_TEACHER, ids=lambda use: use["use"])
@pytest.mark.parametrize("stage", ["distill", "quantize"])
def test_where_the_teacher_has_no_weight_the_control_is_the_student_bit_for_bit(run_of, stage, losses):
    """Start, batches, steps, phases and dropout are the same; a projector's random start does not change that."""
    record = run_of(stage, distill={**losses, "control": True}, quantize={"control": True}).entries[stage].record
    assert len(record.history) == 2 * EPOCHS
    assert curves(record, "") == curves(record, "2/")
    (gained,) = record.gains
    assert (gained.difference, gained.verdict) == (0.0, "undecided")
    assert (gained.metric, gained.samples) == ("top1", 64)
    assert gained.low < 0 < gained.high


def test_a_control_leaves_the_student_as_it_is_and_makes_the_stage_run_again(run_of):
    distill = {"losses": ["logit-kd", "fitnet"]}
    plain = run_of("quantize", distill=distill)
    other = run_of("quantize", "other", distill=distill | {"control": True}, quantize={"control": True})
    assert [weights(plain, stage) for stage in ("distill", "quantize")] == [
        weights(other, stage) for stage in ("distill", "quantize")
    ]
    for stage in ("distill", "quantize"):
        told = [run.entries[stage].record for run in (plain, other)]
        assert told[0].gains == ()
        assert told[1].history[:EPOCHS] == told[0].history
        assert [sorted(epoch.values) for epoch in told[1].history[EPOCHS:]] == [
            ["2/train/loss", "2/validation/loss", "2/validation/top1"]
        ] * EPOCHS

    def keys(stage):
        return [
            run.plan.node(stage).key(dict.fromkeys(run.plan.node(stage).parents.values(), "0"))
            for run in (plain, other)
        ]

    same = {node.name: len(set(keys(node.name))) == 1 for node in plain.plan.nodes}
    assert [name for name, alike in same.items() if not alike] == ["distill", "quantize"]


def test_the_gain_is_that_of_the_models_in_the_store_on_the_test_split(run_of, tmp_path):
    run = run_of(distill={"control": True})
    (gained,) = run.entries["distill"].record.gains
    context = run.work("quantize", tmp_path)
    student = context.model("student")
    (batch,) = context.workload.batches("test", batch_size=64)
    right = (student(*batch.inputs).argmax(1) == batch.targets).double().mean().item()
    assert gained.taught == pytest.approx(right)
    assert gained.difference == pytest.approx(gained.taught - gained.control)
    assert gained.low < gained.difference < gained.high


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stage", ["distill", "quantize"])
def test_a_stage_killed_while_its_control_trains_goes_on_with_the_same_bits(run_of, stage):
    sections = {"distill": {"control": True}, "quantize": {"control": True}}
    whole = run_of(stage, **sections).entries[stage]
    half = run_of({"distill": "cache_teacher", "quantize": "distill"}[stage], "half", **sections)
    begun = []

    class Events(list):
        def append(self, event):
            if event["event"] == "epoch":
                begun.append(next(name for name in event["record"]["values"] if name.endswith("train/loss")))
                if begun.count("2/train/loss") == 2 and not stopped:
                    stopped.append(event)
                    raise StoppedError

    stopped = []
    half.events = Events()
    with pytest.raises(StoppedError):
        half.stage(stage)
    begun.clear()
    again = half.stage(stage)
    assert begun == ["train/loss", "2/train/loss", "2/train/loss"]  # the last epoch with the teacher, and what was left
    assert again.record == whole.record
    assert again.digest == whole.digest


def test_batches_without_labels_move_a_model_that_learns_from_labels_alone_by_nothing(tiny):
    workload = tiny.build("workload", "digits", {})
    batch = next(iter(workload.batches("train", batch_size=8)))
    bare = Batch(batch.inputs, None, batch.ids)
    torch.manual_seed(0)
    start = workload.student()
    for parameter in start.parameters():
        parameter.data += 1.0  # that a decay would show
    spec = FitSpec(epochs=2, schedule="constant", warmup=0, weight_decay=0.5)
    fitted = []
    for batches in ([batch], [batch, bare]):
        model = copy.deepcopy(start)
        model.drop.p = 0.0
        loss = hard_loss(workload)
        fit(model, loss, lambda _e, given=batches: given, spec, samples=8, accelerator=Accelerator(cpu=True))
        fitted.append(tensors_of(model))
    assert all(torch.equal(value, fitted[1][name]) for name, value in fitted[0].items())
    assert not torch.equal(fitted[0]["head.weight"], start.head.weight)


def test_of_few_labels_teacher_and_control_learn_what_there_is(run_of):
    run = run_of(distill={"control": True}, labels="every second batch")
    teacher, student = (run.entries[stage].record for stage in ("train_teacher", "distill"))
    for curve in ([e.values["validation/loss"] for e in teacher.history], [v[1] for v in curves(student, "2/")]):
        assert len(set(curve)) == EPOCHS
    assert student.gains[0].samples == 64


@pytest.mark.parametrize("stage", ["distill", "quantize"])
def test_a_control_without_any_label_is_refused_before_anything_is_trained(run_of, stage):
    run = run_of("cache_teacher", distill={"control": stage == "distill"}, quantize={"control": True})
    if stage == "quantize":
        run.stage("distill")
    bare = run_of(None, distill={"control": stage == "distill"}, quantize={"control": True}, labels="none")
    bare.entries = run.entries
    with pytest.raises(StageError) as caught:
        bare.stage(stage)
    assert str(caught.value) == (
        "'control' asks for a student without the teacher, which needs labels, but no batch of the workload's split "
        "'train' has any; label some, or drop 'control'"
    )
    assert bare.events == []


def test_a_workload_of_numbers_is_measured_by_its_loss_and_lower_is_better(run_of):
    distill = {"use": "regression-kd", "options": {"alpha": 0.0}, "control": True}
    (gained,) = run_of(distill=distill, numbers=True).entries["distill"].record.gains
    assert (gained.metric, gained.difference, gained.verdict) == ("loss", 0.0, "undecided")
    assert gained.model_copy(update={"low": -0.2, "high": -0.1}).verdict == "better"
    assert gained.model_copy(update={"low": 0.1, "high": 0.2}).verdict == "worse"
    assert gained.model_copy(update={"low": math.nan, "high": math.nan}).verdict == "undecided"
    right = gained.model_copy(update={"metric": "top1"})
    ends = {low: right.model_copy(update={"low": low, "high": low + 0.2}).verdict for low in (0.1, 0.0, -0.1, -0.3)}
    assert ends == {0.1: "better", 0.0: "undecided", -0.1: "undecided", -0.3: "worse"}


def test_the_loss_of_each_sample_is_compared_with_that_of_the_same_sample(tiny):
    workload = tiny.build("workload", "digits", {"numbers": True})
    (batch,) = workload.batches("test", batch_size=64)
    x, y = batch.inputs[0].numpy().astype(float), batch.targets.numpy()[:, 0].astype(float)

    class Says(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return self.factor * x[:, 0, 0, :1]

    (found,) = gains(Says(0.1), Says(-0.2), workload, torch.device("cpu"), 20)
    ours, theirs = ((factor * x[:, 0, 0, 0] - y) ** 2 for factor in (0.1, -0.2))
    d, half = ours - theirs, stats.t.ppf(0.975, 63) * np.std(ours - theirs, ddof=1) / 8
    wanted = [ours.mean(), theirs.mean(), d.mean(), d.mean() - half, d.mean() + half, 64]
    told = [found.taught, found.control, found.difference, found.low, found.high, found.samples]
    np.testing.assert_allclose(told, wanted, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 100])
def test_few_test_samples_with_a_loss_claim_no_gain_more_often_than_one_time_in_twenty(n):
    """The interval covers the true difference, 0, in 95 % of 4,000 tries."""
    tries = torch.randn(4000, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    ends = [interval(differences, proportions=False) for differences in tries]
    wrong = sum(low > 0 or high < 0 for low, high in ends) / len(tries)
    assert 0.035 < wrong < 0.065


def test_the_interval_of_right_and_wrong_answers_is_that_of_bonett_and_price():
    """Their formula, by counts: 7 samples lost, 1 won, 13 alike; and the most and the least that can be."""
    for won, lost, alike in ((1, 7, 13), (6, 0, 94), (5, 0, 95), (0, 0, 50)):
        d = torch.tensor([1.0] * won + [-1.0] * lost + [0.0] * alike, dtype=torch.float64)
        n = len(d)
        p, q = (won + 1) / (n + 2), (lost + 1) / (n + 2)
        half = 1.959964 * np.sqrt((p + q - (p - q) ** 2) / (n + 2))
        assert interval(d, proportions=True) == pytest.approx((p - q - half, p - q + half))
    assert interval(torch.tensor([0.0] * 13 + [-1.0] * 7 + [1.0]), proportions=True) == pytest.approx(
        (-0.5084, -0.0134), abs=1e-4
    )
    assert interval(torch.ones(4), proportions=True)[1] == 1.0
    assert interval(torch.tensor([1.0] * 6 + [0.0] * 94), proportions=True)[0] > 0
    assert (
        interval(torch.tensor([1.0] * 5 + [0.0] * 95), proportions=True)[0] < 0
    )  # a coin gives 5 of 5 in 3 % of tries


def test_what_cannot_be_measured_is_an_error(tiny):
    workload = tiny.build("workload", "digits", {"numbers": True})

    class Nothing(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 1), float("nan"))

    with pytest.raises(StageError) as caught:
        gains(Nothing(), Nothing(), workload, torch.device("cpu"), 64)
    assert str(caught.value) == (
        "no gain can be measured on the 64 labelled samples of the workload's split 'test': it takes two or more, each "
        "with a finite loss; correct the split, or drop 'control'"
    )


class Answers(nn.Module):
    """Gives the first input times each of `factors`."""

    def __init__(self, *factors):
        super().__init__()
        self.factors = torch.tensor(factors)

    def forward(self, x):
        return x[..., :1] * self.factors


class Signs(Workload):  # type: ignore[misc]
    """Whether the first of four numbers is positive: 40 samples, of which the last are ignored, of `places` each."""

    ignored: int = 0
    places: int = 0

    def fingerprint(self):
        return "0" * 64

    def teacher(self):
        raise NotImplementedError

    student = teacher

    def batches(self, split, *, batch_size, seed=0, epoch=0):
        shape = (40, self.places, 4) if self.places else (40, 4)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        y = (x[..., 0] > 0).long()
        y[40 - self.ignored :] = -100
        yield Batch((x,), y, torch.arange(40))

    def loss(self, outputs, batch):
        if outputs.logits.shape[-1] == 1:
            return F.binary_cross_entropy_with_logits(outputs.logits[:, 0], batch.targets.float())
        return F.cross_entropy(outputs.logits.flatten(0, -2), batch.targets.flatten())


def gain(good, bad, **options):
    (found,) = gains(Answers(*good), Answers(*bad), Signs(**options), torch.device("cpu"), 256)
    return found


def test_one_logit_a_sample_is_compared_by_its_loss_and_not_as_a_class():
    found = gain([5.0], [-5.0])
    assert (found.metric, found.verdict, found.samples) == ("loss", "better", 40)
    assert set(curves_of(Answers(5.0), Signs(), torch.device("cpu"), 256)) == {"validation/loss"}


def test_samples_whose_labels_are_ignored_are_not_measured():
    found = gain([-1.0, 1.0], [1.0, -1.0], ignored=30)
    assert (found.metric, found.taught, found.control, found.samples) == ("top1", 1.0, 0.0, 10)
    values = curves_of(Answers(-1.0, 1.0), Signs(ignored=30), torch.device("cpu"), 256)
    assert values["validation/top1"] == 1.0
    whole = gain([-1.0, 1.0], [1.0, -1.0], ignored=3, places=5)
    assert (whole.metric, whole.verdict, whole.samples) == ("loss", "better", 37)
