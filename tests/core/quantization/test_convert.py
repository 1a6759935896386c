"""The converted model is the prepared one in integers, in the corners too."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.api import StageError
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.testing import ToyNet
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

pytestmark = pytest.mark.isa


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def ready(model, batches=3, shape=(1, 6, 6)):
    torch.manual_seed(0)
    graph = capture(model, (torch.randn(2, *shape),))
    prepared = prepare(graph, OnnxRuntimeCpu(reduce_range="off").places(graph), MinMaxQat())
    for _ in range(batches):
        prepared(torch.randn(32, *shape))
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    return prepared.eval()


@torch.no_grad()
def worst_lsb(prepared, converted, shape=(1, 6, 6)):
    x = torch.randn(100, *shape)
    (scale,) = output_scales(converted)
    return float((prepared(x) - converted(x)).abs().max() / scale)


def test_integers_of_the_folded_weight_are_those_of_the_simulation():
    model = Net()
    nn.init.normal_(model.norm.weight)
    prepared = ready(model)
    converted = convert(prepared)
    w = prepared.get_parameter("conv.weight")
    q = (w / (w.abs().amax((1, 2, 3), keepdim=True) / 127)).round()
    folded = q * prepared.get_parameter("norm.weight").sign().reshape(-1, 1, 1, 1)
    assert torch.equal(converted.get_buffer("grids.conv2d_weight").float(), folded)
    assert converted.get_buffer("grids.conv2d_weight").dtype == torch.int8
    assert converted.get_buffer("grids.conv2d_bias").dtype == torch.int32
    assert worst_lsb(prepared, converted) <= 1.01
    assert not list(converted.parameters())


def test_converting_leaves_the_prepared_model_as_it_is():
    prepared = ready(ToyNet(), shape=(1, 8, 8))
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    x = torch.randn(5, 1, 8, 8)
    y = prepared(x)
    converted = convert(prepared)
    assert torch.equal(prepared(x), y)
    assert all(torch.equal(before[name], value) for name, value in prepared.state_dict().items())
    assert worst_lsb(prepared, converted, (1, 8, 8)) <= 1.01


def zero_row(model):
    model.conv.weight.data[2] = 0


def zero_gamma(model):
    model.norm.weight.data[1:3] = 0
    model.norm.bias.data[1] = 5.0


def vanishing_gamma(model):
    model.norm.weight.data[0] = 1e-12
    model.norm.bias.data[0] = 3.0


def dead_relu(model):
    model.norm.bias.data[:] = -100


@pytest.mark.parametrize("damage", [zero_row, zero_gamma, vanishing_gamma, dead_relu])
def test_degenerate_channels_convert_to_the_same_outputs(damage):
    model = Net()
    damage(model)
    prepared = ready(model)
    converted = convert(prepared)
    assert worst_lsb(prepared, converted) <= 1.01
    scales = converted.get_buffer("grids.conv2d_weight_scale")
    assert bool((scales.isfinite() & (scales > 0)).all())


def test_a_weight_used_twice_is_quantized_for_both_operators():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
            self.head = nn.Linear(36, 4)

        def forward(self, x):
            return self.head(self.conv(F.relu(self.conv(x))).flatten(1))

    prepared = ready(Twice())
    assert worst_lsb(prepared, convert(prepared)) <= 1.01


def test_float_outputs_have_no_scale():
    torch.manual_seed(0)
    graph = capture(ToyNet(), (torch.randn(2, 1, 8, 8),))
    target = OnnxRuntimeCpu(quantize_outputs=False)
    prepared = prepare(graph, target.places(graph), MinMaxQat())
    prepared(torch.randn(8, 1, 8, 8))
    assert output_scales(convert(prepared)) == (None,)


def test_a_model_without_a_quantizable_layer_is_refused():
    graph = capture(nn.ReLU(), (torch.randn(2, 3),))
    with pytest.raises(StageError) as caught:
        prepare(graph, OnnxRuntimeCpu().places(graph), MinMaxQat())
    assert str(caught.value) == (
        "the model has no layer that the target can quantize; it needs at least one conv or linear"
    )


def test_a_model_that_is_not_prepared_is_refused():
    with pytest.raises(StageError) as caught:
        convert(capture(Net(), (torch.randn(2, 1, 6, 6),)))
    assert str(caught.value) == "the model to convert is not prepared; call prepare() on its captured graph first"


def test_a_model_that_saw_no_data_is_refused():
    with pytest.raises(StageError) as caught:
        convert(ready(Net(), batches=0))
    assert str(caught.value) == "place 'x:input' has seen no data; observe at least one batch before rounding"


def test_switching_phases_reaches_every_range_and_batch_norm():
    prepared = ready(Net())
    set_phase(prepared, observe=True, quantize=False, freeze_batch_norm=True)
    prepared.train()
    x = torch.randn(64, 1, 6, 6)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    prepared(x)
    changed = {name for name, value in prepared.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("fake_quantizers.") for name in changed)
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=False)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    prepared(x)
    changed = {name for name, value in prepared.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_a_grid_that_is_not_what_the_target_asks_for_is_refused():
    prepared = ready(Net())
    module = prepared.get_submodule("fake_quantizers.x_input")
    module.place = replace(module.place, qmax=127)
    with pytest.raises(StageError) as caught:
        convert(prepared)
    assert str(caught.value) == (
        "the quantizer's grid for place 'x:input' has integers 0..127; the target asks for 0..255"
    )
    module.place = replace(module.place, qmax=255)
    module.high.fill_(float("nan"))
    with pytest.raises(StageError) as caught:
        convert(prepared)
    assert str(caught.value) == (
        "place 'x:input' saw a value that is not finite; look for NaN or infinity in the data, "
        "or lower the learning rate"
    )
