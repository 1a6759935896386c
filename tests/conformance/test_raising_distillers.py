"""The kit for distillers turns whatever a plug-in raises, or wrongly returns, into a sentence with case and line."""

import functools
import inspect
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError

from kdq_core.api import Field, LossTerms
from kdq_core.testing import check_distiller
from tests.conformance.sound_distillers import Hints, Kl

FILE = Path(__file__).name


class GivesATensor(Kl):
    def loss(self, student, teacher, batch):
        return super().loss(student, teacher, batch).terms["soft"]


class GivesADict(Kl):
    def loss(self, student, teacher, batch):
        return super().loss(student, teacher, batch).terms


class GivesNothing(Kl):
    def loss(self, student, teacher, batch):
        super().loss(student, teacher, batch)


class TermsAreATensor(Kl):
    def loss(self, student, teacher, batch):
        return LossTerms(self.each(student.logits, teacher.logits).mean())


class TermIsANumber(Kl):
    def terms(self, student, teacher):
        return LossTerms({"soft": self.each(student, teacher).mean().item()})


class WithoutTerms(Kl):
    def terms(self, student, teacher):
        return LossTerms({})


class WeightIsAWord(Kl):
    def terms(self, student, teacher):
        return LossTerms(super().terms(student, teacher).terms, "half")


class NothingWithoutLabels(Kl):
    def loss(self, student, teacher, batch):
        return None if batch.targets is None else super().loss(student, teacher, batch)


class VectorOfOne(Kl):
    def terms(self, student, teacher):
        soft = self.each(student, teacher)
        return LossTerms({"soft": soft if len(soft) == 1 else soft.mean()})


RETURNS = (
    "loss should return `LossTerms(terms={...}, hard_weight=...)` with scalar tensors by name, but for a batch of 8 "
)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (GivesATensor, f"GivesATensor.{RETURNS}it returned a value of type Tensor ({FILE}:#def loss#)"),
        (GivesADict, f"GivesADict.{RETURNS}it returned a value of type dict ({FILE}:#def loss#)"),
        (GivesNothing, f"GivesNothing.{RETURNS}it returned a value of type NoneType ({FILE}:#def loss#)"),
        (
            TermsAreATensor,
            f"TermsAreATensor.{RETURNS}it returned a value of type LossTerms with terms of type Tensor "
            f"({FILE}:#def loss#)",
        ),
        (
            NothingWithoutLabels,
            f"NothingWithoutLabels.{RETURNS}it returned a value of type NoneType ({FILE}:#def loss#)".replace(
                "a batch of 8", "a batch without labels"
            ),
        ),
        (TermIsANumber, "a soft term should be a scalar tensor, but 'soft' is of type float for a batch of 8"),
        (WithoutTerms, "a distiller should give at least one soft term, but it gave none for a batch of 8"),
        (WeightIsAWord, "the hard weight should be a number, but it is 'half' for a batch of 8"),
        (VectorOfOne, "a soft term should be a scalar, but 'soft' has shape (1,) for unequal models and a batch of 1"),
    ],
)
def test_what_is_no_loss_terms_is_named_and_so_is_what_is_expected(broken, sentence):
    with pytest.raises(AssertionError) as caught:
        check_distiller(broken())
    assert str(caught.value) == with_lines(broken, sentence)


def with_lines(broken, sentence):
    """The sentence with the number of the line of the class that has the words between two #."""
    before, *rest = sentence.split("#")
    if not rest:
        return sentence
    lines, first = inspect.getsourcelines(broken)
    return before + str(first + next(i for i, line in enumerate(lines) if rest[0] in line)) + rest[1]


class WithoutProjectors(Hints):
    def each(self, student, teacher):
        return (student - teacher).square().mean(-1)

    def projectors(self, student, teacher):
        return {}


class Undeclared(Kl):
    def loss(self, student, teacher, batch):
        return self.terms(torch.stack(list(student.features.values())), teacher.logits)


class UndeclaredByName(Kl):
    def loss(self, student, teacher, batch):
        return self.terms(student.features["vector"], teacher.logits)


class WrongWay(Hints):
    def projectors(self, student, teacher):
        return {"vector": torch.nn.Linear(*teacher["vector"], *student["vector"])}


class TooWide(Hints):
    def each(self, student, teacher):
        return (student - teacher).square().mean(-1)

    def projectors(self, student, teacher):
        return {"vector": torch.nn.Linear(*student["vector"], 7)}


class ListOfProjectors(Hints):
    def projectors(self, student, teacher):
        return [torch.nn.Linear(*student["vector"], *teacher["vector"])]


class BareProjector(Hints):
    def projectors(self, student, teacher):
        return {"vector": torch.relu}


class Pair(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class ProjectsTwo(Hints):
    def projectors(self, student, teacher):
        return {"vector": Pair(*student["vector"], *teacher["vector"])}


class RaisesInProjectors(Hints):
    def projectors(self, student, teacher):
        raise LookupError("first line\nsecond line")


class FixedBatch(Kl):
    def terms(self, student, teacher):
        return super().terms(student.view(8, 10), teacher)


class AssignsToAField(Kl):
    def terms(self, student, teacher):
        self.alpha = 0.7
        return super().terms(student, teacher)


class NotInBfloat16(Kl):
    def loss(self, student, teacher, batch):
        if student.logits.dtype == torch.bfloat16:
            raise TypeError
        return super().loss(student, teacher, batch)


class NotBackwards(Kl):
    def terms(self, student, teacher):
        odds = student.exp()
        soft = odds.square().mean() * (student - teacher).square().mean()
        odds.zero_()
        return LossTerms({"soft": soft})


class NotAtTheEnd(Kl):
    def terms(self, student, teacher):
        return LossTerms({"soft": self.each(student, teacher).mean() * (self.alpha**2 / self.alpha)})


class NoAnswer(Kl):
    def takes_top_k(self):
        return self.temperature == 1


class WithoutLabels(Kl):
    def loss(self, student, teacher, batch):
        len(batch.targets)
        return super().loss(student, teacher, batch)


@pytest.mark.parametrize(
    ("broken", "sentence", "cause"),
    [
        (
            WithoutProjectors,
            "WithoutProjectors.loss should work for features of other widths than the teacher's (behind its "
            "projectors: map [4, 4, 4] and [6, 4, 4]; sequence [5, 4] and [5, 6]; vector [4] and [6]), but it raises "
            "RuntimeError: The size of tensor a (4) must match the size of tensor b (6) at non-singleton "
            f"dimension 1 ({FILE}:#student - teacher#)",
            RuntimeError,
        ),
        (
            Undeclared,
            "Undeclared.loss should work for a batch of 8, but it raises RuntimeError: stack expects a non-empty "
            f'TensorList ({FILE}:#torch.stack#); it reads features, which only a class that says `features = "pairs"` '
            "is given",
            RuntimeError,
        ),
        (
            UndeclaredByName,
            f"UndeclaredByName.loss should work for a batch of 8, but it raises KeyError: 'vector' "
            f'({FILE}:#self.terms#); it reads features, which only a class that says `features = "pairs"` is given',
            KeyError,
        ),
        (
            WrongWay,
            "the projector of 'vector' from WrongWay.projectors should take features [8, 4], but it raises "
            f"RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x4 and 6x4) "
            f"(projectors is at {FILE}:#def projectors#)",
            RuntimeError,
        ),
        (
            TooWide,
            "TooWide.loss should work for features of other widths than the teacher's (behind its projectors: map "
            "[4, 4, 4] and [6, 4, 4]; sequence [5, 4] and [5, 6]; vector [7] and [6]), but it raises RuntimeError: "
            f"The size of tensor a (7) must match the size of tensor b (6) at non-singleton dimension 1 "
            f"({FILE}:#student - #)",
            RuntimeError,
        ),
        (
            ListOfProjectors,
            "ListOfProjectors.projectors should return modules by name of the pair, but it returned a value of type "
            f"list ({FILE}:#def projectors#)",
            type(None),
        ),
        (
            BareProjector,
            "the projector of 'vector' should be a torch.nn.Module, but it is of type builtin_function_or_method "
            f"({FILE}:#def projectors#)",
            type(None),
        ),
        (
            ProjectsTwo,
            "the projector of 'vector' from ProjectsTwo.projectors should take features [8, 4] and give a tensor, but "
            "it gives tuple",
            type(None),
        ),
        (
            RaisesInProjectors,
            "RaisesInProjectors.projectors should work for features of other widths than the teacher's, but it raises "
            f"LookupError: first line ({FILE}:#raise#)",
            LookupError,
        ),
        (
            FixedBatch,
            "FixedBatch.loss should work for unequal models and a batch of 1, but it raises RuntimeError: shape "
            f"'[8, 10]' is invalid for input of size 10 ({FILE}:#view(8, 10)#)",
            RuntimeError,
        ),
        (
            AssignsToAField,
            "AssignsToAField.loss should work for a batch of 8, but it raises ValidationError: alpha: Instance is "
            f"frozen ({FILE}:#0.7#)",
            ValidationError,
        ),
        (
            NotInBfloat16,
            "NotInBfloat16.loss should work for a batch of 8, logits of about 3, torch.bfloat16, but it "
            f"raises TypeError ({FILE}:#raise#)",
            TypeError,
        ),
        (
            NotAtTheEnd,
            "NotAtTheEnd.loss should work for a batch of 8 with alpha=0, but it raises ZeroDivisionError: float "
            f"division by zero ({FILE}:#self.alpha**2#)",
            ZeroDivisionError,
        ),
        (
            NoAnswer,
            "NoAnswer.takes_top_k should say yes or no, but it raises AttributeError: 'NoAnswer' object has no "
            f"attribute 'temperature' ({FILE}:#self.temperature#)",
            AttributeError,
        ),
        (
            WithoutLabels,
            "a batch without labels should work, or the class should say needs_labels = True, but it raises TypeError: "
            f"object of type 'NoneType' has no len() ({FILE}:#len(#)",
            TypeError,
        ),
    ],
)
def test_what_the_plugin_raises_is_told_with_the_case_and_its_line(broken, sentence, cause):
    with pytest.raises(AssertionError) as caught:
        check_distiller(broken())
    assert str(caught.value) == with_lines(broken, sentence)
    assert type(caught.value.__cause__) is cause


def test_a_loss_that_cannot_be_gone_through_backwards_is_named():
    with pytest.raises(AssertionError) as caught:
        check_distiller(NotBackwards())
    start, end = str(caught.value).split(": one of the variables needed for gradient computation has been modified by ")
    assert start == "the loss of NotBackwards should have a gradient for a batch of 8, but it raises RuntimeError"
    assert end.endswith(with_lines(Kl, "(loss is at sound_distillers.py:#def loss#)"))


class Unwritable(Kl):
    model_config: ClassVar[dict] = {"arbitrary_types_allowed": True}
    through: type | torch.nn.Module = Field(default=torch.nn.Identity, description="a layer")


def test_options_that_cannot_stand_in_a_recipe_are_named():
    with pytest.raises(AssertionError, match=r"^the options of Unwritable should have a JSON schema, but it raises Py"):
        check_distiller(Unwritable())


class OneOfTwo(Kl):
    """Not broken: a weight of 0 that cannot be lifted alone, and a loss that is wrapped."""

    beta: float = Field(default=0.5, ge=0, le=1, description="a weight")

    def model_post_init(self, _):
        if self.alpha + self.beta != 1:
            raise ValueError("the two weights make 1")

    @functools.wraps(Kl.loss)
    def loss(self, *given):
        return super().loss(*given)


def test_options_that_do_not_allow_each_other_are_left_as_they_are():
    check_distiller(OneOfTwo())
    check_distiller(OneOfTwo(alpha=1, beta=0))
