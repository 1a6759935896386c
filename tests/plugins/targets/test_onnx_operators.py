"""Each family of operators: what runs in int8 in ONNX Runtime, what stays float and says why, and that it is exact."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from kdq_core.api import recurrent
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.testing import TOYS
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets.onnx_fuse import fuse
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_targets.ort_kernels import optimized_graph

TOY = {toy.name: toy for toy in TOYS}


def shipped(model, inputs, folder, only_weights=False, samples=64, **options):
    """Calibrate, convert, export; answers of the converted model and of the file."""
    torch.manual_seed(0)
    target, data = OnnxRuntimeCpu(reduce_range="on", **options), torch.Generator().manual_seed(1)
    graph = capture(model() if isinstance(model, type) else model, inputs(2, data))
    places = target.places(graph)
    places = tuple(p for p in places if p.role == "weight") if only_weights else places
    prepared = prepare(graph, places, MinMaxQat())
    with torch.no_grad():
        for _ in range(2):
            prepared(*inputs(64, data))
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    prepared.eval()
    converted, path = convert(prepared), folder / "int8.onnx"
    target.export(converted, inputs(2, data), path)
    x = inputs(samples, data)
    with torch.no_grad():
        simulated, integers = prepared(*x).numpy(), converted(*x).numpy()
    session = target.session(path, threads=1)
    (answers,) = session.run(tuple(part.numpy() for part in x))
    return SimpleNamespace(
        rows=target.coverage(path, graph), integers=integers, answers=answers, simulated=simulated, session=session,
        scale=output_scales(converted)[0], path=path, x=x, places=places, converted=converted,
    )  # fmt: skip


def kernels(files):
    return [(row.operator, row.kernel) for row in files.rows]


EXPECTED = {
    "conv 1d": [
        ("conv", "QLinearConv"), ("hardswish", "HardSigmoid"), ("conv", "QLinearConv"),
        ("leaky_relu", "QLinearLeakyRelu"), ("pool", "QLinearGlobalAveragePool"), ("conv", "QLinearConv"),
        ("sigmoid", "QLinearSigmoid"), ("mul", "QLinearMul"), ("concat", "QLinearConcat"),
        ("pool", "QLinearGlobalAveragePool"), ("linear", "QGemm"),
    ],
    "transformer": [
        ("linear", "QGemm"), ("layer_norm", "LayerNormalization"), ("linear", "QGemm"), ("attention", "Attention"),
        ("linear", "QGemm"), ("add", "Add"), ("layer_norm", "LayerNormalization"), ("linear", "QGemm"),
        ("gelu", "Gelu"), ("linear", "QGemm"), ("add", "Add"), ("mean", "ReduceMean"), ("linear", "QGemm"),
    ],
    "table with embeddings": [
        ("embedding", "Gather"), ("embedding", "Gather"), ("linear", "QGemm"), ("concat", "QLinearConcat"),
        ("linear", "QGemm"), ("linear", "QGemm"),
    ],
    "lstm": [("lstm", "DynamicQuantizeLSTM"), ("mean", "ReduceMean"), ("linear", "QGemm")],
    "gru": [("gru", "Scan"), ("linear", "QGemm")],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_what_multiplies_matrices_is_int8_and_the_rest_says_why_not(name, tmp_path):
    files = shipped(TOY[name].model, TOY[name].inputs, tmp_path)
    assert kernels(files) == EXPECTED[name]
    wide = [row for row in files.rows if row.operator in ("conv", "linear", "lstm", "gru", "embedding")]
    assert all(row.int8 and row.weight_bytes > 0 for row in wide)
    assert all(row.int8 == (row.reason == "") for row in files.rows)
    products = {row.operator for row in files.rows if row.activation_macs}
    assert products == ({"attention"} if name == "transformer" else set())
    lsb = np.abs(files.integers - files.answers) / files.scale
    assert np.quantile(lsb, 0.99) <= 1.01
    assert lsb.mean() < 0.02
    assert np.quantile(np.abs(files.simulated - files.integers) / files.scale, 0.99) <= 1.01


def test_no_quantizer_stands_on_what_only_float_operators_read():
    graph = capture(TOY["transformer"].model(), TOY["transformer"].inputs(2, torch.Generator()))
    names = [p.node for p in OnnxRuntimeCpu().places(graph) if p.role == "activation" and p.shared_with is None]
    assert names == ["x", "layer_norm", "scaled_dot_product_attention", "layer_norm_1", "gelu", "mean", "linear_5"]


class Joined(nn.Module):
    """Splits, slices, stacks; one conv used twice; relu and relu6 that stand alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(2, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(x)))
        left, right = x.chunk(2, 1)
        y = torch.cat([right, left], 1) + self.twice(x)
        z = self.twice(y)
        y = y + F.relu(z) + z
        both = torch.stack([y[:, 2:6], y[:, :4].expand(-1, -1, -1, -1)], 1).flatten(1, 2)
        return self.head(F.adaptive_avg_pool2d(torch.cat([both, both], 1), 1).flatten(1))


def images(count, generator):
    return (torch.randn(count, 2, 8, 8, generator=generator),)


def test_data_that_is_split_stacked_and_joined_stays_int8(tmp_path):
    files = shipped(Joined, images, tmp_path)
    assert all(row.int8 for row in files.rows)
    assert ("relu", "QLinearLeakyRelu") in kernels(files)
    assert [row.operator for row in files.rows].count("conv") == 3
    np.testing.assert_allclose(files.integers, files.answers, atol=1.01 * files.scale)


class Padded(nn.Module):
    """A shortcut without weights: every other position, and zeros for the new channels (He et al. 2016, option A)."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.head(F.interpolate(x, scale_factor=2.0).mean((2, 3)))


def test_padding_and_nearest_neighbours_move_integers(tmp_path):
    files = shipped(Padded, images, tmp_path)
    assert all(row.int8 for row in files.rows)
    types = [node.op_type for node in optimized_graph(files.path).node]
    assert {"Pad", "Resize"} < set(types)
    assert types.count("DequantizeLinear") == 1  # the output
    np.testing.assert_allclose(files.integers, files.answers, atol=1.01 * files.scale)


def numpy_lstm(x, w, r, b):
    """Independent: gates i, f, g, o; the state rounded to multiples of 2/255 as uint8 around 128."""
    h, c = np.zeros((x.shape[1], r.shape[1])), np.zeros((x.shape[1], r.shape[1]))

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    for step in x:
        rounded = (np.clip(np.rint(h * 127.5) + 128, 0, 255) - 128) / 127.5
        i, f, g, o = np.split(step @ w.T + rounded @ r.T + b, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


def test_the_integer_lstm_is_the_one_computed_by_hand():
    generator = np.random.default_rng(0)
    x = generator.integers(-100, 100, (4, 3, 5)) * 0.01
    w, r = generator.integers(-63, 64, (16, 5)), generator.integers(-63, 64, (16, 4))
    w_scale, r_scale, b = (
        generator.uniform(0.005, 0.01, 16),
        generator.uniform(0.005, 0.01, 16),
        generator.normal(size=16),
    )

    def wide(value):
        return torch.tensor(value[None], dtype=torch.float32)

    zeros = torch.zeros(1, 3, 4)
    y, h, _ = recurrent(
        torch.tensor(x, dtype=torch.float32), torch.tensor(0.01), torch.tensor(100, dtype=torch.uint8), [zeros, zeros],
        torch.tensor(w[None], dtype=torch.int8), wide(w_scale), torch.tensor(r[None], dtype=torch.int8), wide(r_scale),
        wide(b / 2), wide(b / 2), "lstm", "",
    )  # fmt: skip
    expected = numpy_lstm(x, w * w_scale[:, None], r * r_scale[:, None], b)
    np.testing.assert_allclose(h[0].numpy(), expected, atol=1e-5)
    assert torch.equal(y[-1], h[0])


def test_a_samples_answer_depends_neither_on_its_neighbours_nor_on_the_future(tmp_path):
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(6, 8, batch_first=True)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    files = shipped(Steps, TOY["lstm"].inputs, tmp_path, quantize_outputs=False)
    np.testing.assert_allclose(files.integers, files.answers, atol=1e-5)  # nothing is rounded behind the state
    x = files.x[0].numpy()[:4].copy()
    (before,) = files.session.run((x,))
    x[1:] *= 0.1
    x[0, 3:] *= 0.1
    (after,) = files.session.run((x,))
    np.testing.assert_array_equal(before[0, :3], after[0, :3])
    assert not np.array_equal(before[1:], after[1:])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_given_state_beyond_its_grid_is_clipped_for_a_gru_and_widens_the_range_of_an_lstm(kind, tmp_path):
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = kind(6, 8, batch_first=True)

        def forward(self, x, h):
            h = h.transpose(0, 1).contiguous()
            return self.layer(x, h if kind is nn.GRU else (h, h * 0))[0]

    def inputs(count, data):
        return torch.randn(count, 4, 6, generator=data), torch.rand(count, 1, 8, generator=data) * 2 - 1

    model = Given()
    files = shipped(model, inputs, tmp_path, quantize_outputs=False)
    np.testing.assert_allclose(files.answers, files.integers, atol=1e-5)
    x, h = files.x[0], 4 * files.x[1]
    (answers,) = files.session.run((x.numpy(), h.numpy()))
    with torch.no_grad():
        simulated, real = files.converted(x, h).numpy(), model.eval()(x, h).numpy()
    beyond = np.abs(simulated - real).max()
    assert beyond > 0.1
    if kind is nn.GRU:
        np.testing.assert_allclose(answers, simulated, atol=1e-5)
    else:
        assert np.abs(answers - real).max() < beyond / 5


@pytest.mark.parametrize(("name", "kernel"), [("lstm", "LSTM"), ("gru", "GRU")])
def test_int8_weights_before_a_float_input_run_in_the_float_layer(name, kernel, tmp_path):
    files = shipped(TOY[name].model, TOY[name].inputs, tmp_path, only_weights=True)
    row = files.rows[0]
    assert (row.operator, row.kernel, row.int8) == (name, kernel, False)
    assert row.reason == f"its input is float: int8 weights, and the runtime's float {kernel}"
    weights = [w for w in files.places if w.operator == name]
    model = TOY[name].model()
    assert row.weight_bytes == sum(model.get_parameter(w.name).numel() for w in weights)
    np.testing.assert_allclose(files.integers, files.answers, atol=1e-5)


def test_a_table_that_is_also_a_linears_weight_has_one_scale(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens):
            return self.head(self.table(tokens).mean(1))

    def tokens(count, generator):
        return (torch.randint(12, (count, 3), generator=generator),)

    files = shipped(Tied, tokens, tmp_path)
    (weight,) = (p for p in files.places if p.role == "weight")
    assert (weight.axis, weight.channels) == (None, None)
    assert [row.int8 for row in files.rows if row.operator in ("embedding", "linear")] == [True, True]
    np.testing.assert_allclose(files.integers, files.answers, atol=1.01 * files.scale)


def clipped_graph(low, high, scale, zero):
    tensors = {"low": np.float32(low), "high": np.float32(high), "s": np.float32(scale), "z": np.uint8(zero)}
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Clip", ["n", "low", "high"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("q", TensorProto.UINT8, ["n"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero", "types"),
    [
        (0, 6, 6 / 255, 0, ["Neg", "QuantizeLinear"]),
        (0, 6, 0.03, 0, ["Neg", "QuantizeLinear", "Clip"]),
        (-1, 1, 0.05, 30, ["Neg", "QuantizeLinear", "Clip"]),
    ],
)
def test_clipping_moves_behind_the_quantization_and_gives_the_same_integers(low, high, scale, zero, types):
    import onnxruntime

    model = clipped_graph(low, high, scale, zero)
    before = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    fuse(model)
    onnx.checker.check_model(model)
    after = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [node.op_type for node in model.graph.node] == types
    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    np.testing.assert_array_equal(before.run(None, {"x": x})[0], after.run(None, {"x": x})[0])


class ConvThenGru(nn.Module):
    """What the GRU reads is int8 already."""

    def __init__(self):
        super().__init__()
        self.stem, self.gru, self.head = (
            nn.Conv1d(3, 8, 3, padding=1),
            nn.GRU(8, 12, batch_first=True),
            nn.Linear(12, 4),
        )

    def forward(self, x):
        return self.head(self.gru(F.relu(self.stem(x)).transpose(1, 2))[0][:, -1])


def test_a_gru_is_weight_only_where_the_target_is_told_so(tmp_path):
    def inputs(count, data):
        return (torch.randn(count, 3, 6, generator=data),)

    files = shipped(ConvThenGru, inputs, tmp_path, gru="weight-only")
    conv, gru, head = (row for row in files.rows if row.operator in ("conv", "gru", "linear"))
    assert (conv.int8, gru.int8, gru.kernel, head.int8) == (True, False, "GRU", True)
    assert gru.reason == "weight-only, as the option 'gru' of the target says: int8 weights, float arithmetic"
    assert gru.weight_bytes == 3 * 12 * (8 + 12)
    assert np.abs(files.integers - files.answers).max() <= 1.01 * files.scale
    assert np.abs(files.simulated - files.integers).max() <= 1.01 * files.scale


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_dropout_before_a_recurrent_layer_leaves_it_in_int8(kind, tmp_path):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.drop, self.head = nn.Embedding(20, 8), nn.Dropout(0.3), nn.Linear(24, 4)
            self.recurrent = getattr(nn, kind.upper())(8, 12, batch_first=True, bidirectional=True)

        def forward(self, tokens):
            return self.head(self.recurrent(self.drop(self.table(tokens)))[0].mean(1))

    files = shipped(Tokens, lambda count, data: (torch.randint(20, (count, 6), generator=data),), tmp_path)
    row = next(row for row in files.rows if row.operator == kind)
    assert (row.int8, row.reason) == (True, "")
    assert np.quantile(np.abs(files.integers - files.answers) / files.scale, 0.99) <= 1.01
    assert np.quantile(np.abs(files.simulated - files.integers) / files.scale, 0.99) <= 1.01
