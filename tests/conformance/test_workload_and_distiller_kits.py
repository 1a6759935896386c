"""The house plug-ins pass the kits, and each kit sees each broken promise."""

import pytest
import torch

from kdq_core.api import Batch, Distiller, Field, LossTerms
from kdq_core.testing import check_distiller, check_workload
from kdq_distillers.logit_kd import LogitKd
from kdq_workloads.digits import Digits


@pytest.mark.parametrize("augment", [False, True])
def test_digits_keeps_the_promises_of_a_workload(augment):
    check_workload(Digits(augment=augment, teacher_width=8, student_width=8))


@pytest.mark.parametrize("options", [{}, {"alpha": 0}, {"alpha": 1}, {"temperature": 1}, {"temperature": 100}])
def test_logit_kd_keeps_the_promises_of_a_distiller(options):
    check_distiller(LogitKd(**options))


class Squared(Distiller):
    """A correct distiller that the broken ones below differ from in one thing."""

    alpha: float = Field(default=0.5, ge=0, le=1)

    def loss(self, student, teacher, batch):
        return self.terms(student.logits.float(), teacher.logits.detach().float())

    def terms(self, student, teacher):
        return LossTerms({"soft": self.alpha * (student - teacher).square().mean()}, 1 - self.alpha)


class NeverZero(Squared):
    def terms(self, student, teacher):
        return LossTerms({"soft": (student - teacher).square().mean() + 1})


class Vector(Squared):
    def terms(self, student, teacher):
        return LossTerms({"soft": (student - teacher).square().mean(1)})


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


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (NeverZero, "equal models should give zero soft loss, but term 'soft' is 1"),
        (Vector, "a soft term should be a scalar, but 'soft' has shape (8,)"),
        (Explodes, "the loss should be finite, but it is inf for 8 samples, 10 classes, logits of about 10000"),
        (Leaks, "no gradient should reach the teacher, but one did; detach its tensors"),
        (LooksAtOrder, "the order of samples should not matter, but term 'soft' moves by"),
        (Jumps, "the loss should be continuous in 'alpha', but it jumps by"),
    ],
)
def test_the_distiller_kit_names_the_broken_promise(broken, sentence):
    check_distiller(Squared())
    with pytest.raises(AssertionError) as caught:
        check_distiller(broken())
    assert str(caught.value).startswith(sentence)


class Small(Digits):
    """The first 40 samples of each split, with the smallest models."""

    teacher_width: int = 4
    student_width: int = 4
    augment: bool = False

    def batches(self, split, *, batch_size, seed=0, epoch=0):
        (batch,) = super().batches(split, batch_size=2000)
        order = batch.ids[batch.ids < 40]
        if split == "train":
            order = order[torch.randperm(40, generator=torch.Generator().manual_seed(1000 * seed + epoch))]
        rows = {int(n): row for row, n in enumerate(batch.ids)}
        for ids in self.order(order, split).split(batch_size):
            at = torch.tensor([rows[int(n)] for n in ids])
            yield Batch((self.view(batch.inputs[0][at], ids),), batch.targets[at], ids)

    def order(self, order, split):
        return order

    def view(self, images, ids):
        return images


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
    def batches(self, split, *, batch_size, seed=0, epoch=0):
        return super().batches(
            "test" if split == "validation" else split, batch_size=batch_size, seed=seed, epoch=epoch
        )


class Unseeded(Small):
    def student(self):
        torch.seed()
        return super().student()


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (Unstable, "the fingerprint of an equal workload should be the same, but it is another one"),
        (Unshuffled, "another seed should shuffle train anew"),
        (Twice, "split 'train' should give each sample number from 0 to N-1 once, but it does not"),
        (GlobalNoise, "the same seed should give the same batches of 'train'"),
        (BatchDependent, "a sample of 'train' should look the same whatever batch it is in, but it does not"),
        (Leaky, "splits should be disjoint, but 40 samples of 'validation' are in 'test' too"),
        (Unseeded, "the same seed should give the same student: 'conv.weight'"),
    ],
)
def test_the_workload_kit_names_the_broken_promise(broken, sentence):
    with pytest.raises(AssertionError) as caught:
        check_workload(broken())
    assert str(caught.value).startswith(sentence)


def test_the_small_workload_itself_is_not_broken():
    check_workload(Small())
