"""The house plug-ins pass the kits, and each kit sees each broken promise."""

from typing import ClassVar, Literal

import pytest
import torch
from pydantic import model_validator

from kdq_core.api import Batch, Distiller, Field, LossTerms, View
from kdq_core.plugins.catalog import Catalog
from kdq_core.testing import check_distiller, check_workload
from kdq_workloads.digits import Digits


@pytest.mark.parametrize("augment", [False, True])
def test_digits_keeps_the_promises_of_a_workload(augment):
    check_workload(Digits(augment=augment, teacher_width=8, student_width=8))


DISTILLERS = sorted(Catalog.load().names("distiller"))
OPTIONS = [
    ("dist", {"temperature": 0.01}),
    ("dist", {"temperature": 100}),
    ("dkd", {"temperature": 0.01}),
    ("dkd", {"alpha": 0, "beta": 0}),
    ("hard-label", {"alpha": 0}),
    ("logit-kd", {"alpha": 0}),
    ("logit-kd", {"alpha": 1, "temperature": 1}),
    ("logit-kd", {"temperature": 100}),
    ("logit-kd", {"standardize": True}),
    ("logistic", {"alpha": 1}),
    ("mse-logits", {"on": "probabilities"}),
    ("multi-label-kd", {"temperature": 0.01}),
    ("attention-transfer", {"power": 1}),
    ("attention-transfer", {"power": 8}),
    ("crd", {"tau": 0.001}),
    ("crd", {"tau": 10}),
    ("fitnet", {"beta": 0}),
    ("regression-kd", {"delta": 0.5}),
    ("rkd", {"angle": 0}),
    ("similarity", {"gamma": 1}),
    ("token-kd", {"temperature": 100}),
]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in DISTILLERS), *OPTIONS])
def test_every_installed_distiller_keeps_its_promises(name, options):
    check_distiller(Catalog.load().build("distiller", name, options))


@pytest.mark.parametrize("options", [{}, {"alpha": 1, "temperature": 4}])
def test_token_kd_keeps_its_promises_on_sequences(options):
    check_distiller(Catalog.load().build("distiller", "token-kd", options), places=5)


def test_the_distillers_that_are_checked_are_those_the_catalog_names():
    assert {name for name, _ in OPTIONS} <= set(DISTILLERS)
    assert len(DISTILLERS) >= 15


class Squared(Distiller):
    """A correct distiller that the broken ones below differ from in one thing."""

    alpha: float = Field(default=0.5, ge=0, le=1, description="a weight")

    def loss(self, student, teacher, batch):
        return self.terms(student.logits.float(), teacher.logits.detach().float())

    def terms(self, student, teacher):
        return LossTerms({"soft": self.alpha * (student - teacher).square().mean()}, 1 - self.alpha)


class NeverZero(Squared):
    def terms(self, student, teacher):
        return LossTerms({"soft": (student - teacher).square().mean() + 1})


class CrossEntropy(Squared):
    zero_for_equal_models: ClassVar[bool] = False

    def terms(self, student, teacher):
        return LossTerms({"soft": torch.nn.functional.cross_entropy(student, teacher.argmax(1))})


class BelowZero(CrossEntropy):
    def terms(self, student, teacher):
        return LossTerms({"soft": (student - teacher).square().mean() - 1})


class Vector(Squared):
    def terms(self, student, teacher):
        return LossTerms({"soft": (student - teacher).square().mean(1)})


class CalledLoss(Squared):
    def terms(self, student, teacher):
        return LossTerms({"loss": (student - teacher).square().mean()})


class Explodes(Squared):
    def terms(self, student, teacher):
        return LossTerms({"soft": (student - teacher).exp().sub(1).square().mean()})


class Leaks(Squared):
    def loss(self, student, teacher, batch):
        return self.terms(student.logits.float(), teacher.logits.float())


class LooksAtOrder(Squared):
    def terms(self, student, teacher):
        return LossTerms({"soft": ((student - teacher).square().mean(1) * torch.arange(len(student))).sum()}, 1.0)


class Jumps(Squared):
    def terms(self, student, teacher):
        return LossTerms({"soft": (self.alpha > 0) * (student - teacher).square().mean()}, 1.0)


class JumpsAtZero(Squared):
    beta: float = Field(default=1.0, ge=0, le=50, description="a weight")

    def terms(self, student, teacher):
        return LossTerms({"soft": (self.beta > 0) * (student - teacher).square().mean()}, 1.0)


class JumpsAtTheTop(Squared):
    beta: float = Field(default=1.0, ge=0, le=1000, description="a weight")

    def terms(self, student, teacher):
        return LossTerms({"soft": (self.beta if self.beta < 1000 else 0) * (student - teacher).square().mean()}, 1.0)


class JumpsAtTheBottom(Squared):
    temperature: float | None = Field(default=None, ge=0.5, le=8, description="softens")

    def terms(self, student, teacher):
        return LossTerms({"soft": (self.temperature != 0.5) * (student - teacher).square().mean()}, 1.0)


class OneOrTheOther(Squared):
    """Not broken: each weight has an end that the other does not let it reach."""

    beta: float = Field(default=0.5, ge=0, le=1, description="a weight")

    @model_validator(mode="after")
    def _a_whole(self):
        if self.alpha + self.beta != 1:
            raise ValueError("the two weights make 1")
        return self


class Detached(Squared):
    def terms(self, student, teacher):
        return super().terms(student.detach(), teacher)


class OnlyNamesTheStudent(Squared):
    def terms(self, student, teacher):
        return LossTerms({"soft": 0 * student.sum()}, 1.0)


class DetachedWithoutLabels(Squared):
    def terms(self, student, teacher):
        return LossTerms({"soft": (student.detach() - teacher).square().mean()})


class OnlyRight(Squared):
    """Not broken: learns from the teacher where it is right."""

    needs_labels: ClassVar[bool] = True

    def loss(self, student, teacher, batch):
        right = (teacher.logits.argmax(1) == batch.targets)[:, None].float()
        return self.terms(student.logits.float() * right, teacher.logits.detach().float() * right)


class Reweighs(Squared):
    """Not broken: says how much the labels count, by how sure the teacher is."""

    def terms(self, student, teacher):
        return LossTerms({"soft": 0 * student.sum()}, float(teacher.softmax(1).amax(1).mean()))


class WantsLabels(Squared):
    def loss(self, student, teacher, batch):
        assert batch.targets.ndim == 1
        return super().loss(student, teacher, batch)


class HasLabels(WantsLabels):
    needs_labels: ClassVar[bool] = True


class NeedsFloat32(Squared):
    def loss(self, student, teacher, batch):
        given = super().loss(student, teacher, batch)
        wide = student.logits.dtype == torch.float64
        return LossTerms({name: term / (0.0 if wide else 1.0) for name, term in given.terms.items()}, given.hard_weight)


class Vectors(Squared):
    """A correct distiller of features."""

    features: ClassVar[Literal["none", "pairs"]] = "pairs"

    def loss(self, student, teacher, batch):
        ours, theirs = student.features["vector"].float(), teacher.features["vector"].detach().float()
        return self.terms(ours, theirs)

    def projectors(self, student, teacher):
        return {"vector": torch.nn.Linear(*student["vector"], *teacher["vector"])}


class LeaksFeatures(Vectors):
    def loss(self, student, teacher, batch):
        return self.terms(student.features["vector"].float(), teacher.features["vector"].float())


class LogitsOnly(Vectors):
    def loss(self, student, teacher, batch):
        return self.terms(student.logits.float(), teacher.logits.detach().float())


class StrangeProjector(Vectors):
    def projectors(self, student, teacher):
        return super().projectors(student, teacher) | {"other": torch.nn.Identity()}


class IdleProjector(Vectors):
    def projectors(self, student, teacher):
        return super().projectors(student, teacher) | {"map": torch.nn.Conv2d(4, 6, 1)}


class Wild(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) + (0 * self.weight).sum().sqrt()


class WildProjector(Vectors):
    def projectors(self, student, teacher):
        return {"vector": Wild(*student["vector"], *teacher["vector"])}


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (NeverZero, "equal models should give zero soft loss, but term 'soft' is 1"),
        (BelowZero, "equal models should give a finite soft loss of at least zero, but term 'soft' is -1"),
        (CalledLoss, "a soft term should not be called 'loss': that is a curve of the training itself"),
        (Vector, "a soft term should be a scalar, but 'soft' has shape (8,)"),
        (Explodes, "the loss should be finite, but it is inf for a batch of 8, logits of about 10000, torch.float32"),
        (Leaks, "no gradient should reach the teacher, but one did reach its logits; detach its tensors"),
        (LooksAtOrder, "the order of samples should not matter, but term 'soft' moves by"),
        (Jumps, "the loss should be continuous in 'alpha', but it jumps by"),
        (JumpsAtZero, "the loss should be continuous in 'beta', but it jumps by"),
        (JumpsAtTheTop, "the loss should be continuous in 'beta', but it jumps by"),
        (JumpsAtTheBottom, "the loss should be continuous in 'temperature', but it jumps by"),
        (Detached, "the soft terms alone should give the student's logits a gradient that is not zero"),
        (DetachedWithoutLabels, "the soft terms alone should give the student's logits a gradient that is not zero"),
        (OnlyNamesTheStudent, "the soft terms alone should give the student's logits a gradient that is not zero"),
        (LogitsOnly, "the soft terms alone should give the student's features a gradient that is not zero"),
        (WantsLabels, "a batch without labels should work, or the class should say needs_labels = True, but it raises"),
        (NeedsFloat32, "the loss should be finite, but it is inf for a student in torch.float64"),
        (LeaksFeatures, "no gradient should reach the teacher, but one did reach its vector; detach its tensors"),
        (StrangeProjector, "projectors should be for the pairs map, sequence, vector, but one is for 'other'"),
        (IdleProjector, "the projector of 'map' should get a gradient that is not zero, but it gets none"),
        (WildProjector, "the projector of 'vector' should get finite gradients"),
    ],
)
def test_the_distiller_kit_names_the_broken_promise(broken, sentence):
    check_distiller(Squared())
    check_distiller(CrossEntropy())
    check_distiller(Vectors())
    check_distiller(HasLabels())
    with pytest.raises(AssertionError) as caught:
        check_distiller(broken())
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("sound", [OneOrTheOther(), OnlyRight(), Reweighs(), Squared(alpha=0)])
def test_the_distiller_kit_lets_unusual_distillers_pass(sound):
    check_distiller(sound)


class Small(Digits):
    """The first 40 samples of each split, with the smallest models."""

    teacher_width: int = Field(default=4, description="channels")
    student_width: int = Field(default=4, description="channels")
    augment: bool = Field(default=False, description="shift images")

    def batches(self, split, *, batch_size, seed=0, epoch=0, view=None):
        (batch,) = super().batches(split, batch_size=2000)
        order = batch.ids[batch.ids < 40]
        if split == "train":
            order = order[torch.randperm(40, generator=torch.Generator().manual_seed(1000 * seed + epoch))]
        rows = {int(n): row for row, n in enumerate(batch.ids)}
        for ids in self.order(order, split).split(batch_size):
            at = torch.tensor([rows[int(n)] for n in ids])
            moved = self.noise(view or View(seed, epoch), epoch) if split == "train" else 0.0
            yield Batch((self.view(batch.inputs[0][at], ids) + moved,), batch.targets[at], ids)

    def order(self, order, split):
        return order

    def view(self, images, ids):
        return images

    def noise(self, view, epoch):
        return 0.0


class EpochDependent(Small):
    def noise(self, view, epoch):
        return float(epoch)


class ViewIgnored(Small):
    def batches(self, split, *, batch_size, seed=0, epoch=0):
        return super().batches(split, batch_size=batch_size, seed=seed, epoch=epoch)


class Unnumbered(Small):
    def batches(self, split, *, batch_size, seed=0, epoch=0, view=None):
        view = view or (View(9, 9) if split == "train" else None)
        return super().batches(split, batch_size=batch_size, seed=seed, epoch=epoch, view=view)

    def noise(self, view, epoch):
        return view.number / 8 if view.number in (1, 9) else 0.0


class Unstable(Small):
    def fingerprint(self):
        return f"{id(self):064x}"


class Unshuffled(Small):
    def order(self, order, split):
        return order.sort().values


class Twice(Small):
    def order(self, order, split):
        return torch.cat((order[:-1], order[:1]))


class GlobalNoise(Small):
    def view(self, images, ids):
        return images + torch.rand_like(images)


class BatchDependent(Small):
    def view(self, images, ids):
        return images - images.mean()


class Leaky(Small):
    def batches(self, split, *, batch_size, seed=0, epoch=0, view=None):
        return super().batches(
            "test" if split == "validation" else split, batch_size=batch_size, seed=seed, epoch=epoch, view=view
        )


class Unseeded(Small):
    def student(self):
        torch.seed()
        return super().student()


class Noisy(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + torch.rand(1)


class RandomInEval(Small):
    def student(self):
        return Noisy(super().student())


class Undescribed(Small):
    strength: float = 1.0


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (RandomInEval,
         "random in eval mode: the student gives other logits for the same samples at each call; draw random numbers "
         "only while `training` is set"),
        (Undescribed, "every option of Undescribed should have a description, but ['strength'] have none"),
        (Unstable, "the fingerprint of an equal workload should be the same, but it is another one"),
        (Unshuffled, "another seed should shuffle train anew"),
        (Twice, "split 'train' should give each sample number from 0 to N-1 once, but it does not"),
        (GlobalNoise, "the same seed should give the same batches of 'train'"),
        (BatchDependent, "a sample of 'train' should look the same whatever batch it is in, but it does not"),
        (EpochDependent, "a sample of a view should look the same in every epoch, but 40 samples do not"),
        (ViewIgnored, "batches() should take `view: View | None = None`, which decides how train samples are"),
        (Unnumbered, "without a view it should be View(seed, epoch), but 40 samples look different"),
        (Leaky, "splits should be disjoint, but 40 samples of 'validation' are in 'test' too"),
        (Unseeded, "the same seed should give the same student: 'conv.weight'"),
    ],
)  # fmt: skip
def test_the_workload_kit_names_the_broken_promise(broken, sentence):
    with pytest.raises(AssertionError) as caught:
        check_workload(broken())
    assert str(caught.value).startswith(sentence)


def test_the_small_workload_itself_is_not_broken():
    check_workload(Small())


class Partly(Small):
    """Training samples with and without labels in batches of their own, with a short one at the end of each sort."""

    unlabelled: bool = Field(default=True, description="leave labels out")

    def batches(self, split, *, batch_size, seed=0, epoch=0, view=None):
        if split != "train":
            yield from super().batches(split, batch_size=batch_size)
            return
        every = list(super().batches(split, batch_size=1, seed=seed, epoch=epoch, view=view))
        for few in (True, False):
            some = [one for one in every if (int(one.ids) % 3 == 0) == few]
            for at in range(0, len(some), batch_size):
                x, y, ids = (
                    torch.cat(each) for each in zip(*((b.inputs[0], b.targets, b.ids) for b in some[at:][:batch_size]))
                )
                yield Batch((x,), None if self.unlabelled and not few else y, ids)


def test_samples_with_and_without_labels_may_come_in_batches_of_their_own():
    check_workload(Partly())
    with pytest.raises(AssertionError, match=r"batches of 'train' should have 16 samples, but have \[14, 16, 10\]"):
        check_workload(Partly(unlabelled=False))
