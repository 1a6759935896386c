"""Min-max ranges and rounding against NumPy."""

import numpy as np
import pytest
import torch

from kdq_core.api import MinMaxFakeQuantize, Place, StageError

WEIGHT = Place("w", "weight", "w", "int8", -63, 63, symmetric=True, axis=0, channels=3)
ACTIVATION = Place("a", "activation", "a", "uint8", 0, 255, symmetric=False)


def test_weights_round_to_the_grid_of_each_channels_largest_value():
    w = np.random.default_rng(0).normal(size=(3, 2, 3, 3)).astype(np.float32)
    scale = (np.abs(w).reshape(3, -1).max(1) / np.float32(63)).astype(np.float32)
    expected = np.clip(np.round(w / scale.reshape(3, 1, 1, 1)), -63, 63) * scale.reshape(3, 1, 1, 1)
    quantizer = MinMaxFakeQuantize(WEIGHT)
    np.testing.assert_array_equal(quantizer(torch.from_numpy(w)).numpy(), expected)
    np.testing.assert_array_equal(quantizer.grid().scale.numpy(), scale)


def test_activations_round_to_the_moving_average_of_the_range():
    first, second = (np.random.default_rng(n).normal(loc=n, size=(4, 5)).astype(np.float32) for n in (1, 2))
    quantizer = MinMaxFakeQuantize(ACTIVATION, averaging=0.25)
    quantizer(torch.from_numpy(first))
    y = quantizer(torch.from_numpy(second)).numpy()
    low = min(first.min() + 0.25 * (second.min() - first.min()), 0)
    high = first.max() + 0.25 * (second.max() - first.max())
    scale = np.float32((high - low) / 255)
    zero = np.round(-low / scale)
    np.testing.assert_allclose(y, (np.clip(np.round(second / scale) + zero, 0, 255) - zero) * scale, rtol=1e-5)
    assert int(quantizer.grid().zero_point) == zero


def test_the_gradient_passes_inside_the_range_and_stops_outside():
    quantizer = MinMaxFakeQuantize(ACTIVATION)
    quantizer.observe(torch.tensor([-1.0, 1.0]))
    quantizer.observing = False
    x = torch.tensor([-2.0, -0.9, 0.0, 0.9, 2.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_the_gradient_of_a_weight_stops_where_its_channel_clips():
    quantizer = MinMaxFakeQuantize(WEIGHT)
    quantizer.observe(torch.ones(3, 2))
    quantizer.observing = False
    w = torch.tensor([[0.5, 1.5], [-0.5, -1.5], [0.0, 1.0]], requires_grad=True)
    quantizer(w).sum().backward()
    assert w.grad.tolist() == [[1, 0], [1, 0], [1, 1]]


def test_what_is_on_the_grid_stays_there():
    quantizer = MinMaxFakeQuantize(ACTIVATION)
    y = quantizer(torch.randn(100))
    quantizer.observing = False
    assert torch.equal(quantizer(y), y)


def test_a_row_of_zero_weights_and_a_constant_activation_have_a_grid():
    weight = MinMaxFakeQuantize(WEIGHT)
    assert torch.equal(weight(torch.zeros(3, 2)), torch.zeros(3, 2))
    assert weight.grid().scale.gt(0).all()
    for value in (0.0, 3.0, -3.0):
        activation = MinMaxFakeQuantize(ACTIVATION)
        x = torch.full((4,), value)
        assert torch.allclose(activation(x), x)


def test_channels_last_and_contiguous_tensors_have_the_same_range():
    x = torch.randn(2, 3, 4, 5)
    one, other = MinMaxFakeQuantize(ACTIVATION), MinMaxFakeQuantize(ACTIVATION)
    assert torch.equal(one(x), other(x.to(memory_format=torch.channels_last)))


def test_data_that_is_not_finite_is_refused():
    with pytest.raises(StageError) as caught:
        MinMaxFakeQuantize(ACTIVATION)(torch.tensor([1.0, float("nan")]))
    assert str(caught.value) == (
        "place 'a' saw a value that is not finite; look for NaN or infinity in the data, or lower the learning rate"
    )


def test_a_grid_needs_data():
    with pytest.raises(StageError) as caught:
        MinMaxFakeQuantize(ACTIVATION).grid()
    assert str(caught.value) == "place 'a' has seen no data; observe at least one batch before rounding"
