"""Golden values and laws of the distiller `attention-transfer`."""

import numpy as np
import pytest
import torch

from kdq_core.api import Batch, Outputs, StageError
from kdq_distillers.attention_transfer import AttentionTransfer


def attention(maps, power):
    a = (np.abs(maps.astype(np.float64)) ** power).mean(1).reshape(len(maps), -1)
    return a / np.linalg.norm(a, axis=1, keepdims=True)


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_the_loss_equals_an_independent_computation_in_float64(feature_terms, maps, power):
    student, teacher = maps
    found = feature_terms(AttentionTransfer(power=power), {"x": student}, {"x": teacher})
    expected = 1000 * np.mean((attention(student, power) - attention(teacher, power)) ** 2)
    assert list(found.terms) == ["attention"]
    assert float(found.terms["attention"]) == pytest.approx(expected, rel=1e-5)
    assert found.hard_weight == 1.0


def test_the_loss_of_an_example_worked_by_hand(feature_terms):
    # Two positions. Student: squares 9, 16 over one channel: (9, 16) / sqrt(337). Teacher: means of two channels'
    # squares (0 + 0) / 2, (1 + 7) / 2: (0, 1). Squared differences (81 + (16 - sqrt 337)^2) / 337, mean over both
    # positions.
    student, teacher = [[[[3.0, -4.0]]]], [[[[0.0, 1.0]], [[0.0, 7.0**0.5]]]]
    found = feature_terms(AttentionTransfer(beta=1.0), {"x": student}, {"x": teacher})
    root = 337**0.5
    assert float(found.terms["attention"]) == pytest.approx((81 + (16 - root) ** 2) / 337 / 2, rel=1e-5)


def test_a_sequence_is_a_map_of_one_row(feature_terms, maps):
    student, teacher = (m[:, :, 0] for m in maps)
    rows = feature_terms(AttentionTransfer(), {"x": student[:, :, None]}, {"x": teacher[:, :, None]})
    sequences = [m.transpose(0, 2, 1).copy() for m in (student, teacher)]
    found = feature_terms(AttentionTransfer(), {"x": sequences[0]}, {"x": sequences[1]})
    assert float(found.terms["attention"]) == pytest.approx(float(rows.terms["attention"]), rel=1e-6)


def test_stronger_activations_at_the_same_places_are_no_difference(feature_terms, maps):
    found = feature_terms(AttentionTransfer(), {"x": 7 * maps[0]}, {"x": maps[0]})
    assert float(found.terms["attention"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("power", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("scale", [1e-36, 1e-4, 1e5, 1e30])
def test_the_scale_of_features_does_not_matter(maps, power, scale):
    student, teacher = (torch.from_numpy(m).float() for m in maps)
    wanted, ours = (float(distance(student, teacher, power)), (scale * student).requires_grad_())
    found = distance(ours, scale * teacher, power)
    assert wanted > 1
    assert found.item() == pytest.approx(wanted, rel=1e-4)
    found.backward()
    assert ours.grad.any()
    assert (scale * ours.grad).isfinite().all()


def distance(student, teacher, power):
    outputs = [Outputs(torch.zeros(len(x), 2), features={"x": x}) for x in (student, teacher)]
    batch = Batch((torch.zeros(len(student), 1),), None, torch.arange(len(student)))
    return AttentionTransfer(power=power).loss(*outputs, batch).terms["attention"]


def test_vectors_add_nothing_beside_maps_and_are_an_error_alone(feature_terms, maps):
    alone = feature_terms(AttentionTransfer(), {"x": maps[0]}, {"x": maps[1]}).terms["attention"]
    vectors = torch.ones(8, 3), torch.zeros(8, 5)
    both = feature_terms(AttentionTransfer(), {"x": maps[0], "v": vectors[0]}, {"x": maps[1], "v": vectors[1]})
    assert float(both.terms["attention"]) == float(alone)
    with pytest.raises(StageError) as caught:
        feature_terms(AttentionTransfer(), {"v": vectors[0]}, {"v": vectors[1]})
    assert str(caught.value) == (
        "distiller 'attention-transfer' needs features with positions, but all pairs are vectors (v); tap layers of "
        "maps [B, C, H, W] or sequences [B, L, C]"
    )


def test_a_layer_that_is_silent_has_a_gradient_of_zero(feature_terms, maps):
    student = torch.zeros(8, 3, 4, 4, requires_grad=True)
    feature_terms(AttentionTransfer(), {"x": student}, {"x": maps[1]}).terms["attention"].backward()
    assert not student.grad.any()
