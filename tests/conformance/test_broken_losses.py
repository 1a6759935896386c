"""The kit for distillers names losses with the wrong sign, sums over the batch, and those that need more than top k."""

import re
from typing import ClassVar

import pytest
import torch

from kdq_core.api import Field, LossTerms
from kdq_core.testing import check_distiller
from kdq_distillers.mixed_kd import MixedKd
from tests.conformance.sound_distillers import Hints, Kl


class Reversed(Kl):
    def each(self, student, teacher):
        return -super().each(student, teacher)


class ReversedHints(Hints):
    def each(self, student, teacher):
        return -super().each(student, teacher)


class ReversedInSamples(Kl):
    """Below zero for some samples, not in the mean of 8."""

    def each(self, student, teacher):
        return super().each(student, teacher) + teacher.amax(-1) - student.amax(-1)


class TakesTopKOfLogits(Kl):
    def each(self, student, teacher):
        return (student - teacher).square().mean(-1)


class Summed(Kl):
    def terms(self, student, teacher):
        return LossTerms({"soft": self.alpha * self.each(student, teacher).sum() / 8}, 1 - self.alpha)


class SummedHints(Hints):
    def terms(self, student, teacher):
        return LossTerms({"soft": self.alpha * self.each(student, teacher).sum()}, 1 - self.alpha)


class Contrast(Hints):
    """Not broken: picks its own sample among those of the batch, which gets harder with each one more."""

    zero_for_equal_models: ClassVar[bool] = False

    def each(self, student, teacher):
        ours, theirs = (torch.nn.functional.normalize(z, dim=-1) for z in (student, teacher))
        return torch.nn.functional.cross_entropy(ours @ theirs.T, torch.arange(len(ours)), reduction="none")


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (
            Reversed(),
            "a soft term should be a distance, at least zero where student and teacher differ, but 'soft' is -",
        ),
        (Reversed(alpha=0), "a soft term should be a distance, at least zero where student and teacher differ, but "),
        (
            ReversedHints(),
            "a soft term should be a distance, at least zero where student and teacher differ, but 'soft'",
        ),
        (ReversedInSamples(), "a soft term should be a distance, at least zero where student and teacher differ, but "),
        (
            TakesTopKOfLogits(),
            "takes_top_k() says that softmax distributions are compared, so a constant added to each row of the "
            "teacher's logits should change nothing, but the loss goes from ",
        ),
        (TakesTopKOfLogits(alpha=0), "takes_top_k() says that softmax distributions are compared, so a constant "),
        (Summed(), "a soft term should be a mean over the batch, but 'soft' is "),
        (Summed(alpha=0), "a soft term should be a mean over the batch, but 'soft' is "),
        (SummedHints(), "a soft term should be a mean over the batch, but 'soft' is "),
    ],
    ids=repr,
)
def test_a_loss_that_is_no_distance_no_mean_or_no_softmax_is_named(broken, sentence):
    with pytest.raises(AssertionError) as caught:
        check_distiller(broken)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("sound", [Kl(), Kl(alpha=0), Hints(), Contrast()], ids=repr)
def test_those_they_were_made_of_pass(sound):
    check_distiller(sound)


@pytest.mark.parametrize("places", [0, 5])
def test_they_pass_and_fail_on_sequences_too(places):
    check_distiller(Kl(), places=places)
    with pytest.raises(AssertionError, match=r"^a soft term should be a mean over the batch, but 'soft' is "):
        check_distiller(Summed(), places=places)


class SaysTooMuch(MixedKd):
    """Reads sigmoids, of which the top k is not enough."""

    def takes_top_k(self):
        return True


def test_sigmoids_are_no_softmax_distributions():
    with pytest.raises(AssertionError, match=r"^takes_top_k\(\) says that softmax distributions are compared, so "):
        check_distiller(SaysTooMuch())


class Softened(Kl):
    """Without the factor T^2, so that a temperature takes the teacher away."""

    temperature: float = Field(default=4.0, ge=1, le=100, description="softens both")

    def each(self, student, teacher):
        return super().each(student / self.temperature, teacher / self.temperature)


class SoftenedRight(Softened):
    def each(self, student, teacher):
        return self.temperature**2 * super().each(student, teacher)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_missing_factor_of_the_temperature_is_named(alpha):
    check_distiller(SoftenedRight(alpha=alpha))
    with pytest.raises(AssertionError) as caught:
        check_distiller(Softened(alpha=alpha))
    assert re.fullmatch(
        r"a temperature should soften without taking the teacher away, but from temperature 10 to 40 the gradient of "
        r"the soft terms falls to 0\.06\d of itself; multiply them by temperature\^2 \(Hinton et al\. 2015\)",
        str(caught.value),
    )


class SoftenedLittle(Softened):
    temperature: float = Field(default=4.0, ge=1, le=20, description="softens both")


class SoftenedBelow(Softened):
    temperature: float = Field(default=4.0, gt=0, lt=20, description="softens both")


class SoftenedLittleRight(SoftenedRight):
    temperature: float = Field(default=4.0, ge=1, lt=20, description="softens both")


class HardlySoftened(Softened):
    temperature: float = Field(default=1.0, ge=1, le=4, description="softens both")


@pytest.mark.parametrize(("broken", "tried"), [(SoftenedLittle, "5 to 20"), (SoftenedBelow, "4.95 to 19.8")])
def test_the_kit_tries_temperatures_within_the_bounds_of_the_option(broken, tried):
    check_distiller(SoftenedLittleRight())
    check_distiller(HardlySoftened())  # too narrow to see a factor
    with pytest.raises(AssertionError) as caught:
        check_distiller(broken())
    assert re.fullmatch(
        rf"a temperature should soften without taking the teacher away, but from temperature {tried} the gradient of "
        r"the soft terms falls to 0\.0\d\d of itself; multiply them by temperature\^2 \(Hinton et al\. 2015\)",
        str(caught.value),
    )


class Undescribed(Kl):
    strength: float = Field(default=1.0, ge=0, le=2)


def test_an_option_without_a_description_is_named():
    with pytest.raises(AssertionError) as caught:
        check_distiller(Undescribed())
    assert str(caught.value) == "every option of Undescribed should have a description, but ['strength'] have none"
