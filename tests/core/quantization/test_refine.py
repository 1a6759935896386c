"""Equalization, bias correction, batch norm measured anew and the quantization loss, each against plain NumPy."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.grids.fake import FakeQuantize
from kdq_core.quantization.capture import BatchNorm, capture
from kdq_core.quantization.equalize import equalize
from kdq_core.quantization.placing import placed
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.quantization.refine import correct_biases, reestimate_batch_norm
from kdq_core.recipe.spec import QuantizeSpec
from kdq_core.testing.toys import TOYS
from kdq_core.work.quantizing import with_weight_loss
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

SPEC = QuantizeSpec(weights=4, edges=4)


class Chain(nn.Module):
    """`parts` in turn; a part may stand there more than once."""

    def __init__(self, *parts):
        super().__init__()
        self.modules_once = nn.ModuleList(dict.fromkeys(part for part in parts if isinstance(part, nn.Module)))
        self.order = parts

    def forward(self, x):
        for part in self.order:
            x = part(x)
        return x


def uneven(model, seed=0):
    """`model` with weights of quite different sizes in its channels (0 stays), and batch norms that saw something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            rows = torch.rand(len(module.weight), generator=generator) * 3 + 0.05
            dead = module.weight.detach().flatten(1).abs().amax(1) == 0
            module.weight.data.copy_(torch.randn(module.weight.shape, generator=generator) / 4)
            module.weight.data.mul_((rows * ~dead).reshape(-1, *[1] * (module.weight.dim() - 1)))
            if module.bias is not None:
                module.bias.data.copy_(torch.randn(module.bias.shape, generator=generator))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                value.data.copy_(torch.rand(len(value), generator=generator) + 0.2)
    return model


def arrays(graph):
    state = graph.state_dict().items()
    return {name: value.double().numpy().copy() for name, value in state if value.is_floating_point()}


def equalized(model, shape):
    """The graph, its weights before and after, how many pairs; its outputs have stayed what they were."""
    torch.manual_seed(1)
    x = torch.randn(6, *shape)
    graph = capture(uneven(model), (x,)).eval()
    before, expected = arrays(graph), graph(x).detach()
    pairs = equalize(graph)
    torch.testing.assert_close(graph(x).detach(), expected, rtol=1e-5, atol=1e-5)
    return before, arrays(graph), pairs


def folded(state, layer, norm=None):
    """|weight| of a layer `[C_out, C_in, K]`, in NumPy, with batch norm folded."""
    weight = np.abs(state[f"{layer}.weight"])
    weight = weight.reshape(*weight.shape[:2], -1)
    if norm is None:
        return weight
    factor = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
    return weight * np.abs(factor)[:, None, None]


def test_two_linear_layers_meet_at_the_root_of_the_product_of_their_ranges():
    before, after, pairs = equalized(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), (5,))
    r1, r2 = np.abs(before["0.weight"]).max(1), np.abs(before["2.weight"]).max(0)
    s = np.sqrt(r1 / r2)
    assert pairs == 1
    assert np.abs(np.log(s)).max() > 0.5
    np.testing.assert_allclose(after["0.weight"], before["0.weight"] / s[:, None], rtol=1e-5)
    np.testing.assert_allclose(after["0.bias"], before["0.bias"] / s, rtol=1e-5)
    np.testing.assert_allclose(after["2.weight"], before["2.weight"] * s, rtol=1e-5)
    np.testing.assert_allclose(np.abs(after["0.weight"]).max(1), np.sqrt(r1 * r2), rtol=1e-5)
    np.testing.assert_allclose(np.abs(after["2.weight"]).max(0), np.sqrt(r1 * r2), rtol=1e-5)


def test_the_gain_of_a_batch_norm_takes_the_scale():
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))
    before, after, pairs = equalized(model, (2, 8, 8))
    r1, r2 = folded(before, "0", "1").max((1, 2)), folded(before, "3", "4").max((0, 2))
    assert pairs == 1
    assert np.array_equal(before["0.weight"], after["0.weight"])
    np.testing.assert_allclose(after["1.weight"], before["1.weight"] / np.sqrt(r1 / r2), rtol=1e-5)
    np.testing.assert_allclose(after["1.bias"], before["1.bias"] / np.sqrt(r1 / r2), rtol=1e-5)
    np.testing.assert_allclose(folded(after, "0", "1").max((1, 2)), np.sqrt(r1 * r2), rtol=1e-5)
    np.testing.assert_allclose(folded(after, "3", "4").max((0, 2)), np.sqrt(r1 * r2), rtol=1e-5)


def test_conv_depthwise_and_conv_meet_at_the_cube_root_of_the_product_of_their_ranges():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1),
    )  # fmt: skip
    before, after, pairs = equalized(model, (3, 8, 8))
    ranges = [
        (folded(state, "0", "1").max((1, 2)), folded(state, "3", "4").max((1, 2)), folded(state, "6").max((0, 2)))
        for state in (before, after)
    ]
    assert pairs == 2
    for found in ranges[1]:
        np.testing.assert_allclose(found, np.cbrt(np.prod(ranges[0], axis=0)), rtol=2e-3)


def test_a_grouped_second_layer_reads_each_channel_in_its_group():
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2))
    before, after, pairs = equalized(model, (2, 4, 4))
    r1 = folded(before, "0").max((1, 2))
    second = folded(before, "2")[..., 0]  # outputs 0 and 1 read channels 0 to 2, outputs 2 and 3 read 3 to 5
    r2 = np.concatenate([second[:2].max(0), second[2:].max(0)])
    assert pairs == 1
    np.testing.assert_allclose(folded(after, "0").max((1, 2)), np.sqrt(r1 * r2), rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(2, 6, 3, padding="same"), nn.ReLU(), nn.Conv2d(6, 4, 3, padding="valid")), (2, 8, 8)),
        (nn.Sequential(nn.Conv1d(2, 6, 3, padding="same"), nn.ReLU(), nn.Conv1d(6, 4, 3, padding="same")), (2, 8)),
        (nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)), (2, 8, 8)),
        (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)), (4,)),
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)), (5, 4)),
    ],
    ids=["conv2d padding", "conv1d padding", "no relu", "linear with batch norm", "linear over a sequence"],
)
def test_every_form_of_a_pair_is_equalized(model, shape):
    before, after, pairs = equalized(model, shape)
    assert pairs == 1
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def twice(first, between, second):
    return Chain(first, between, second, between, first, between, second)


LINEAR, CONV, NORM = nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
TIED = [nn.Linear(4, 4), F.relu, nn.Linear(4, 4), F.relu, nn.Linear(4, 4)]
TIED[4].weight = TIED[0].weight
SAME_BIAS = [nn.Linear(4, 4), F.relu, nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)]
SAME_BIAS[4].bias = SAME_BIAS[0].bias


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (twice(nn.Linear(4, 4), F.relu, nn.Linear(4, 4)), (4,)),
        (Chain(LINEAR, F.relu, LINEAR), (4,)),
        (Chain(*TIED), (4,)),
        (Chain(*SAME_BIAS), (4,)),
        (Chain(CONV, NORM, F.relu, nn.Conv2d(4, 4, 1), F.softplus, nn.Conv2d(4, 4, 1), NORM), (4, 5, 5)),
        (nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU6(), nn.Conv2d(6, 4, 1)), (2, 8, 8)),
        (nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Linear(8, 4)), (2, 8, 8)),
        (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)), (8, 6)),
    ],
    ids=[
        "called twice", "its own second", "tied", "shared bias", "shared norm", "relu6", "conv to linear", "other axis",
    ],
)  # fmt: skip
def test_what_cannot_be_scaled_exactly_stays(model, shape):
    before, after, pairs = equalized(model, shape)
    assert pairs == 0
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_channel_without_weights_stays_without():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.data[1] = 0
    before, after, pairs = equalized(model, (4,))
    assert pairs == 1
    assert before["0.bias"][1] == after["0.bias"][1]
    assert np.array_equal(before["2.weight"][:, 1], after["2.weight"][:, 1])


@pytest.mark.parametrize(("name", "pairs"), [("conv net", 1), ("inverted residual", 0), ("transformer", 0)])
def test_pairs_of_the_toys(name, pairs):
    toy = next(toy for toy in TOYS if toy.name == name)
    x = toy.inputs(4, torch.Generator().manual_seed(0))
    graph = capture(toy.model(), x).eval()
    expected = graph(*x).detach()
    assert equalize(graph) == pairs
    torch.testing.assert_close(graph(*x).detach(), expected, rtol=1e-5, atol=1e-5)


def calibrated(model, batches, spec=SPEC):
    """Prepared, with ranges of `batches`, in eval mode and in float."""
    graph = capture(model, (batches[0],))
    places = placed(graph, OnnxRuntimeCpu(reduce_range="on"), MinMaxQat(), spec).places
    prepared = prepare(graph, places, MinMaxQat()).eval()
    set_phase(prepared, observe=True, quantize=False, freeze_batch_norm=True)
    for x in batches:
        prepared(x)
    set_phase(prepared, observe=False, quantize=False, freeze_batch_norm=True)
    return prepared


def round_weights(prepared):
    """Only weights are rounded."""
    for module in prepared.modules():
        if isinstance(module, FakeQuantize):
            module.quantizing = module.place.role == "weight"


def mean_error(prepared, model, batches):
    """Of each output channel, over all samples, with rounded weights."""
    round_weights(prepared)
    model.eval()
    with torch.no_grad():
        outputs, expected = (torch.cat([run(x) for x in batches]).double().numpy() for run in (prepared, model))
    return (outputs - expected).mean(tuple(axis for axis in range(outputs.ndim) if axis != 1))


def rounded(weight, bits=4):
    """NumPy's: -8 to 7, the largest of each channel at 7."""
    flat = weight.reshape(len(weight), -1)
    scale = np.abs(flat).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    return (np.clip(np.rint(flat / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale).reshape(weight.shape)


def batches_of(*sizes, shape):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, *shape, generator=generator) + 1 + number for number, size in enumerate(sizes)]


def test_the_bias_of_a_linear_layer_loses_the_mean_error_over_all_samples():
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Linear(6, 4)), batches_of(32, 8, shape=(6,))
    prepared = calibrated(model, batches)
    assert np.abs(mean_error(prepared, model, batches)).max() > 0.02
    set_phase(prepared, observe=False, quantize=False, freeze_batch_norm=True)
    assert correct_biases(prepared, [(x,) for x in batches]) == 1
    weight, bias = (value.detach().double().numpy() for value in (model[0].weight, model[0].bias))
    mean = torch.cat(batches).double().numpy().mean(0)
    np.testing.assert_allclose(
        prepared.get_parameter("0.bias").detach().numpy(), bias - (rounded(weight) - weight) @ mean, rtol=1e-4
    )
    assert np.abs(mean_error(prepared, model, batches)).max() < 1e-5


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("padding", [0, "valid"])
def test_the_bias_of_a_grouped_convolution_loses_its_mean_error(groups, padding):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 12, 1, groups=groups, padding=padding))
    batches = batches_of(16, 16, shape=(6, 4, 4))
    prepared = calibrated(model, batches)
    before = np.abs(mean_error(prepared, model, batches)).max()
    set_phase(prepared, observe=False, quantize=False, freeze_batch_norm=True)
    assert correct_biases(prepared, [(x,) for x in batches]) == 1
    weight, bias = (value.detach().double().numpy() for value in (model[0].weight, model[0].bias))
    error = (rounded(weight) - weight)[..., 0, 0]
    mean = torch.cat(batches).double().numpy().mean((0, 2, 3)).reshape(groups, 6 // groups)
    shift = np.concatenate([error[i * 12 // groups : (i + 1) * 12 // groups] @ mean[i] for i in range(groups)])
    np.testing.assert_allclose(prepared.get_parameter("0.bias").detach().numpy(), bias - shift, rtol=1e-4, atol=1e-6)
    assert before == pytest.approx(np.abs(shift).max(), rel=1e-3)
    assert np.abs(mean_error(prepared, model, batches)).max() < 1e-5


def test_without_a_bias_the_batch_norm_behind_loses_the_mean_error():
    torch.manual_seed(0)
    model = uneven(nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5)))
    batches = batches_of(16, shape=(3, 4, 4))
    prepared = calibrated(model, batches)
    assert np.abs(mean_error(prepared, model, batches)).max() > 0.01
    set_phase(prepared, observe=False, quantize=False, freeze_batch_norm=True)
    assert correct_biases(prepared, [(x,) for x in batches]) == 1
    assert np.abs(mean_error(prepared, model, batches)).max() < 1e-5


def test_a_layer_without_bias_and_batch_norm_of_its_own_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5))  # batch norm over the sequence of length 5
    batches = batches_of(16, shape=(5, 6))
    prepared = calibrated(model, batches)
    before = arrays(prepared)
    assert correct_biases(prepared, [(x,) for x in batches]) == 0
    assert all(np.array_equal(before[name], value) for name, value in arrays(prepared).items())


class Both(nn.Module):
    """One linear layer for each of three steps, and for the sum of their squares: 3 B samples, then B."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):  # [B, 3, 4]
        steps = self.layer(x.reshape(-1, 4)).reshape(-1, 3, 4)
        return torch.cat([steps, self.layer(x.square().sum(1)).unsqueeze(1)], 1).transpose(1, 2)


def test_the_bias_of_a_layer_used_twice_is_corrected_once_by_the_mean_over_all_it_sees():
    torch.manual_seed(0)
    model, batches = Both(), batches_of(32, 16, shape=(3, 4))
    prepared = calibrated(model, batches)
    before = np.abs(mean_error(prepared, model, batches)).max()
    set_phase(prepared, observe=False, quantize=False, freeze_batch_norm=True)
    assert correct_biases(prepared, [(x,) for x in batches]) == 1
    weight, bias = (value.detach().double().numpy() for value in (model.layer.weight, model.layer.bias))
    x = torch.cat(batches).double().numpy()
    mean = np.concatenate([x.reshape(-1, 4), np.square(x).sum(1)]).mean(0)
    np.testing.assert_allclose(
        prepared.get_parameter("layer.bias").detach().numpy(), bias - (rounded(weight) - weight) @ mean, rtol=1e-4
    )
    assert np.abs(mean_error(prepared, model, batches)).max() < 1e-4 * before + 1e-4


def test_batch_norm_is_measured_anew_as_numpy_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 2))
    batches = batches_of(16, 16, 16, shape=(2, 4, 4))
    prepared = calibrated(model, batches)
    round_weights(prepared)
    conv = nn.Conv2d(2, 3, 1)
    conv.weight.data.copy_(torch.from_numpy(rounded(model[0].weight.detach().double().numpy())))
    conv.bias.data.copy_(model[0].bias)
    values = [conv(x).detach().double().numpy() for x in batches]
    norm = prepared.get_submodule("1")
    prepared.train()
    reestimate_batch_norm(prepared, [(x,) for x in batches])
    means = np.mean([value.mean((0, 2, 3)) for value in values], 0)
    variances = np.mean([value.var((0, 2, 3), ddof=1) for value in values], 0)
    np.testing.assert_allclose(norm.running_mean.numpy(), means, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), variances, rtol=1e-4)
    assert (norm.training, norm.frozen, norm.momentum) == (True, True, 0.1)


def test_a_batch_norm_used_twice_takes_the_mean_over_its_uses():
    norm = nn.BatchNorm1d(3)
    graph = capture(Chain(norm, torch.exp, norm), (torch.randn(4, 3),))
    batches = batches_of(8, 8, shape=(3,))
    (found,) = [m for m in graph.modules() if isinstance(m, BatchNorm)]
    reestimate_batch_norm(graph, [(x,) for x in batches])
    seen = []
    for x in (batch.double().numpy() for batch in batches):
        once = np.exp((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5))
        seen += [x, once]
    np.testing.assert_allclose(found.running_mean.numpy(), np.mean([x.mean(0) for x in seen], 0), rtol=1e-5)
    np.testing.assert_allclose(found.running_var.numpy(), np.mean([x.var(0, ddof=1) for x in seen], 0), rtol=1e-5)


def test_the_quantization_loss_and_its_gradient():
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), batches_of(8, shape=(6,))
    prepared = calibrated(model, batches)
    set_phase(prepared, observe=True, quantize=True, freeze_batch_norm=False)
    task = torch.ones(())
    loss = with_weight_loss(lambda _module, _batch: {"task": task}, prepared, 10.0)
    terms = loss(prepared, None)
    terms["quantization"].backward()
    weights = [value.detach().double().numpy() for value in (model[0].weight, model[2].weight)]
    errors = [weight - rounded(weight) for weight in weights]
    count = sum(weight.size for weight in weights)
    assert terms["task"] is task
    assert terms["quantization"].item() == pytest.approx(10 * sum(np.square(e).sum() for e in errors) / count, rel=1e-4)
    for name, error in zip(("0.weight", "2.weight"), errors, strict=True):
        np.testing.assert_allclose(
            prepared.get_parameter(name).grad.numpy(), 10 * 2 * error / count, rtol=1e-3, atol=1e-7
        )
    assert prepared.get_parameter("0.bias").grad is None


def test_without_a_weight_the_loss_is_the_loss():
    loss = object()
    assert with_weight_loss(loss, None, 0.0) is loss
