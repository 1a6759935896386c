"""Golden values and laws of the distiller `fitnet`."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdq_core.api import StageError
from kdq_distillers.fitnet import Fitnet


def test_the_loss_equals_an_independent_computation_in_float64(feature_terms, maps):
    student, teacher = maps[1][:, ::-1].copy(), maps[1]
    found = feature_terms(Fitnet(beta=3.0), {"a": student, "b": student * 2}, {"a": teacher, "b": teacher})
    wide = student.astype(np.float64)
    expected = 3 * (np.mean((wide - teacher) ** 2) + np.mean((2 * wide - teacher) ** 2))
    assert list(found.terms) == ["hint"]
    assert float(found.terms["hint"]) == pytest.approx(expected, rel=1e-6)
    assert found.hard_weight == 1.0


def test_the_loss_of_an_example_worked_by_hand(feature_terms):
    # (1 - 3)^2 = 4, (2 - 2)^2 = 0, (0 - 1)^2 = 1, (5 - 2)^2 = 9: mean 14 / 4 = 3.5
    found = feature_terms(Fitnet(), {"x": [[1.0, 2.0], [0.0, 5.0]]}, {"x": [[3.0, 2.0], [1.0, 2.0]]})
    assert float(found.terms["hint"]) == 3.5


def test_maps_of_different_sizes_are_averaged_to_the_smaller_one(feature_terms):
    teacher = torch.arange(16.0).reshape(1, 1, 4, 4)  # quarters have the means 2.5, 4.5, 10.5, 12.5
    student = torch.tensor([[[[2.5, 4.5], [10.5, 11.5]]]])
    assert float(feature_terms(Fitnet(), {"x": student}, {"x": teacher}).terms["hint"]) == pytest.approx(1 / 4)
    assert float(feature_terms(Fitnet(), {"x": teacher}, {"x": student}).terms["hint"]) == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [((3, 4, 4), (5, 4, 4), torch.nn.Conv2d), ((7, 3), (7, 5), torch.nn.Linear), ((3,), (5,), torch.nn.Linear)],
)
def test_a_projector_maps_the_students_channels_to_the_teachers(student, teacher, kind):
    (made,) = Fitnet().projectors({"x": student}, {"x": teacher}).values()
    assert type(made) is kind
    assert made(torch.zeros(2, *student)).shape == (2, *teacher)
    assert Fitnet().projectors({"x": teacher}, {"x": teacher}) == {}


def test_a_step_against_the_gradient_lowers_the_loss(feature_terms, maps):
    teacher = {"x": maps[1]}
    student = torch.zeros(maps[1].shape, requires_grad=True)
    before = feature_terms(Fitnet(), {"x": student}, teacher).terms["hint"]
    before.backward()
    after = feature_terms(Fitnet(), {"x": student.detach() - 10 * student.grad}, teacher).terms["hint"]
    assert float(after) < float(before.detach())


@pytest.mark.parametrize(
    ("student", "teacher", "told"),
    [
        ((2, 7, 4), (2, 9, 4), "7 positions, the teacher's at 9 positions (of features `[B, C, L]`, as 1-d "
         "convolutions give them, C is taken for the positions)"),
        ((2, 4, 3, 5), (2, 4), "3x5 positions, the teacher's at none (one vector a sample)"),
        ((2, 4), (2, 4, 1, 1), "none (one vector a sample), the teacher's at 1x1 positions"),
    ],
)  # fmt: skip
def test_features_that_cannot_be_compared_are_named_with_the_positions_of_both(student, teacher, told, feature_terms):
    """Their channels are no matter: the student's are seen behind the projector."""
    with pytest.raises(StageError) as caught:
        feature_terms(Fitnet(), {"mid": torch.zeros(student)}, {"mid": torch.zeros(teacher)})
    assert str(caught.value) == (
        f"distiller 'fitnet' cannot compare the pair 'mid': the student's features are at {told}; tap "
        "layers with the same positions"
    )


def test_channels_that_went_through_no_projector_are_named(feature_terms):
    with pytest.raises(StageError) as caught:
        feature_terms(Fitnet(), {"mid": torch.zeros(2, 7, 4)}, {"mid": torch.zeros(2, 7, 5)})
    assert str(caught.value) == (
        "distiller 'fitnet' cannot compare the pair 'mid': the student's features have the shape (2, 7, 4), the "
        "teacher's (2, 7, 5); let them go through the module that projectors() gives for the pair"
    )


def test_missing_features_are_named(feature_terms):
    with pytest.raises(StageError) as caught:
        feature_terms(Fitnet(), {"a": torch.zeros(2, 3)}, {"b": torch.zeros(2, 3)})
    assert str(caught.value) == (
        "distiller 'fitnet' needs the same named features of both models, but the student gives 'a' and the teacher "
        "'b'; write 'taps' for it in the recipe"
    )


def test_features_of_other_samples_are_named(feature_terms):
    with pytest.raises(StageError, match=r"of the same samples, but for the pair 'a' the student's are \(2, 3\)"):
        feature_terms(Fitnet(), {"a": torch.zeros(2, 3)}, {"a": torch.zeros(4, 3)})


def test_teacher_features_that_are_not_finite_are_named(feature_terms):
    teacher = torch.zeros(2, 3)
    teacher[0, 1], teacher[1, 2] = float("nan"), float("inf")
    with pytest.raises(StageError) as caught:
        feature_terms(Fitnet(), {"a": torch.zeros(2, 3)}, {"a": teacher})
    assert str(caught.value) == (
        "distiller 'fitnet' needs finite teacher features, but 2 of 6 of the pair 'a' are NaN or infinite; train the "
        "teacher with a lower learning rate or with 'clip_norm', or check the file it was read from"
    )


@pytest.mark.parametrize("options", [{"beta": -1}, {"hard_weight": 1001}, {"alpha": 1}])
def test_options_out_of_range_or_unknown_are_refused(options):
    with pytest.raises(ValidationError):
        Fitnet(**options)
