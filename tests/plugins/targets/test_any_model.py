"""Layers of every kind ship: in int8, or float with the reason; the files give what torch and the simulation give."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from kdq_core.errors import StageError
from kdq_core.quantization.capture import capture
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


class Net(nn.Module):
    """Modules and parameters by name, and a forward of them."""

    def __init__(self, forward, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part() if callable(part) and not isinstance(part, nn.Module) else part)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def normal(*shape):
    return lambda count, data: (torch.randn(count, *shape, generator=data),)


def tokens(count, data):
    return (torch.randint(4, (count, 5), generator=data),)


def told(rows):
    """Type, whether int8, and whether the runtime's kernel is known, of each layer with weights."""
    return [(row.operator, row.int8) for row in rows if row.macs]


def head(features=8):
    return lambda: nn.Linear(features, 4)


def test_a_transposed_convolution_stays_float_between_int8_layers(rows_of):
    model = Net(
        lambda net, x: net.head(net.up(F.relu(net.down(x)))),
        down=lambda: nn.Conv2d(3, 6, 3, 2, 1), up=lambda: nn.ConvTranspose2d(6, 4, 4, 2, 1),
        head=lambda: nn.Conv2d(4, 2, 3),
    )  # fmt: skip
    rows = rows_of(model, normal(3, 6, 6))
    assert told(rows) == [("conv", True), ("conv_transpose", False), ("conv", True)]
    (up,) = (row for row in rows if not row.int8)
    assert (up.path, up.reason) == ("up", "KDQ has no int8 form of transposed convolutions")
    assert (up.macs, up.weight_bytes) == (3 * 3 * 6 * 4 * 4 * 4, 4 * 6 * 4 * 4 * 4)
    assert up.kernel in ("ConvTranspose", "Deconvolution_f32")


def test_a_convolution_over_three_axes_is_int8(rows_of):
    model = Net(
        lambda net, x: net.second(F.max_pool3d(F.relu(net.norm(net.first(x))), 2)),
        first=lambda: nn.Conv3d(2, 6, 3, padding=1), norm=lambda: nn.BatchNorm3d(6),
        second=lambda: nn.Conv3d(6, 4, 3, padding="same", groups=2),
    )  # fmt: skip
    assert told(rows_of(model, normal(2, 4, 6, 6))) == [("conv", True), ("conv", True)]


@pytest.mark.rare
def test_layers_of_equal_weights_are_told_apart(rows_of):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)  # TransformerEncoder copies it
    model = Net(
        lambda net, x: net.head(net.encoder(x).mean(1)),
        encoder=lambda: nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), head=head(),
    )  # fmt: skip
    rows = rows_of(model, normal(5, 8))
    assert told(rows) == [("linear", True)] * 9
    assert all(row.kernel != "none" and row.weight_bytes for row in rows if row.macs)


def test_a_layer_that_equals_another_on_the_same_input_is_merged_with_it_and_told(rows_of):
    model = Net(lambda net, x: net.head(net.one(x) + net.two(x)), one=head(), two=head(), head=head(4))
    model.two.load_state_dict(model.one.state_dict())
    rows = [row for row in rows_of(model, normal(8)) if row.macs]
    assert [(row.path, row.int8) for row in rows] == [("one", True), ("two", False), ("head", True)]
    assert (rows[1].kernel, rows[1].reason) == ("none", "it has no counterpart in the runtime's graph")


def test_a_product_with_what_is_computed_from_parameters_is_an_int8_layer(rows_of):
    steps = (
        lambda x, w, b: F.linear(x, w * 0.5, b * 2),
        lambda x, w, b: F.linear(F.normalize(x), F.normalize(w)) * (w * w).mean(),
        lambda x, w, b: x @ w.T + b,
        lambda x, w, b: torch.mm(x, w),
        lambda x, w, b: torch.addmm(b, x, w),
        lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=-2),
        lambda x, w, b: F.linear(x, w, b.exp()) * w.mean(),
    )

    def forward(net, x):
        made = [step(x, w, b) for step, w, b in zip(steps, net.w, net.b, strict=True)]
        return net.head(torch.cat(made, 1))

    torch.manual_seed(0)
    w, b = (nn.ParameterList([torch.randn(*shape) for _ in steps]) for shape in ((8, 8), (8,)))
    rows = rows_of(Net(forward, w=w, b=b, head=head(56)), normal(8))
    assert told(rows) == [("linear", True)] * 8
    floats = {row.operator for row in rows if not row.int8} - {"mul"}  # of the norm; OpenVINO multiplies in int8
    assert floats == {"linalg_vector_norm", "clamp_min", "expand_as", "div"}


def test_a_product_with_a_constant_on_the_left_says_so_and_counts_its_work():
    model = Net(lambda net, x: net.head((net.w @ x).mean(2)), w=lambda: nn.Parameter(torch.randn(6, 8)), head=head(6))
    finder = OnnxRuntimeCpu().finder(capture(model, (torch.randn(2, 8, 5),)), ())
    product, _, layer = ((kind, why, finder.macs(node, kind)) for node, kind, why in finder.operators())
    assert product == ("matmul", "KDQ has no int8 form of this product with a constant", 6 * 5 * 8)
    assert layer == ("linear", "", 6 * 4)


def test_parametrized_layers_are_int8(rows_of):
    model = Net(
        lambda net, x: net.head(F.relu(net.norm(net.conv(x))).mean((2, 3))),
        conv=lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), norm=lambda: nn.BatchNorm2d(8),
        head=lambda: parametrizations.spectral_norm(nn.Linear(8, 4)),
    )  # fmt: skip
    assert told(rows_of(model, normal(3, 8, 8))) == [("conv", True), ("linear", True)]


def test_a_weight_that_depends_on_the_input_and_a_bilinear_layer_stay_float(rows_of):
    model = Net(
        lambda net, x: net.head(net.both(F.linear(x, net.maker(x).mean(0).view(6, 8)), x)),
        maker=lambda: nn.Linear(8, 48), both=lambda: nn.Bilinear(6, 8, 5), head=head(5),
    )  # fmt: skip
    rows = [row for row in rows_of(model, normal(8)) if row.macs]
    assert [row.reason.replace("OpenVINO", "ONNX Runtime") for row in rows] == [
        "", "its weight depends on the model's inputs", "ONNX Runtime has no int8 kernel for bilinear", "",
    ]  # fmt: skip
    assert [row.macs for row in rows] == [8 * 48, 6 * 8, 6 * 8 * 5, 5 * 4]


@pytest.mark.rare
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_plain_recurrent_and_projected_layers_stay_float(rows_of):
    plain = nn.RNN(8, 6, 2, nonlinearity="relu", bidirectional=True, batch_first=True)
    projected = nn.LSTM(12, 6, 2, proj_size=3, bidirectional=True, bias=False, batch_first=True)
    model = Net(
        lambda net, x: net.head(net.lstm(net.tanh(net.rnn(x)[0])[0])[0][:, -1]),
        rnn=plain, tanh=lambda: nn.RNN(12, 12, batch_first=True), lstm=projected, head=head(6),
    )  # fmt: skip
    rows = rows_of(model, normal(5, 8))
    assert told(rows) == [("rnn", False), ("rnn", False), ("lstm", False), ("linear", True)]
    assert rows[0].reason.endswith("has no int8 kernel for plain recurrent layers")
    assert rows[0].macs == 5 * sum(w.numel() for w in plain.parameters() if w.dim() > 1)
    assert rows[2].macs == 5 * sum(w.numel() for name, w in projected.named_parameters() if "hr" not in name)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projected_lstm_with_a_first_state_is_refused(tmp_path):
    model = Net(lambda net, x: net.lstm(x, (x[:1, :, :3] + 1, x[:1]))[0], lstm=lambda: nn.LSTM(8, 8, proj_size=3))
    with pytest.raises(StageError, match="written as ONNX: an LSTM with 'proj_size' is written only without a first"):
        OnnxRuntimeCpu().export(model, (torch.randn(2, 4, 8),), tmp_path / "file.onnx")


def test_embedding_bags_look_up_integers(rows_of):
    bags = [nn.EmbeddingBag(4, 8, mode=m, padding_idx=p) for m in ("sum", "mean", "max") for p in (None, 0)]
    model = Net(
        lambda net, x: net.head(torch.cat([bag(x) for bag in net.bags], 1)), bags=nn.ModuleList(bags), head=head(48)
    )
    rows = rows_of(model, tokens)
    assert [row.int8 for row in rows if row.operator in ("embedding", "linear")] == [True] * 7


def test_bags_cut_by_offsets_are_refused():
    model = Net(lambda net, x: net.bag(x.flatten(), x[:, 0] * 0), bag=lambda: nn.EmbeddingBag(4, 8))
    with pytest.raises(StageError) as caught:
        capture(model, tokens(2, torch.Generator()))
    assert "ValueError: an embedding bag can be traced with tokens [B, L] and without 'max_norm'" in str(caught.value)


POOLS = [
    (F.avg_pool2d, [2, 2, 0, False, True, 3], False),
    (F.avg_pool2d, [3, 2, 1], True),
    (F.avg_pool2d, [3, 2, 1, False, False], True),
    (F.avg_pool2d, [3, 2, 1, True], False),
    (F.avg_pool2d, [(3, 2), (2, 3), 0, True], True),
    (F.avg_pool2d, [2, 3, 1, True, False], True),
    (lambda x, *args: F.avg_pool1d(x.flatten(2), *args), [3, 2, 1, True], False),
    (lambda x, *args: F.avg_pool3d(x.unflatten(1, (2, 2)), *args), [2, 1, 1, False, True], True),
]


def test_average_pooling_gives_what_torch_gives(rows_of):
    model = Net(
        lambda net, x: net.head(torch.cat([pool(net.stem(x), *args).flatten(1) for pool, args, _ in POOLS], 1)),
        stem=lambda: nn.Conv2d(2, 4, 1), head=lambda: nn.LazyLinear(4),
    )  # fmt: skip
    with torch.no_grad():
        model.stem.bias.fill_(-1.0)  # so that the zero point is not 0
        model(torch.zeros(2, 2, 7, 8))
    pools = [row for row in rows_of(model, normal(2, 7, 8)) if row.operator == "pool"]
    why = "it divides windows by another number than that of their values"
    assert [row.reason == why for row in pools] == [not int8 for _, _, int8 in POOLS]
    assert all(row.reason == why or row.int8 or row.kernel == "Pooling_f32" for row in pools)


def test_extremes_and_a_weight_read_both_ways_are_computed_as_in_torch(rows_of):
    """OpenVINO rounds extremes wrongly, and confuses the two ways of one square weight."""

    def forward(net, x):
        twice = F.linear(x, net.both.weight) @ net.both.weight
        return net.head(torch.cat([net.stem(x).amax(1), twice.amin(1)], 1))

    model = Net(forward, stem=lambda: nn.Linear(8, 8), both=lambda: nn.Linear(8, 8), head=head(16))
    assert told(rows_of(model, normal(5, 8))) == [("linear", True)] * 4


def test_products_of_two_layers_are_no_layers_of_the_file(rows_of):
    def forward(net, x):
        q, k, v = (part(x) for part in net.parts)
        return net.head(F.softmax(q @ k.transpose(1, 2), -1) @ v)

    model = Net(forward, parts=lambda: nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), head=head())
    assert told(rows_of(model, normal(5, 8))) == [("linear", True)] * 4


def test_attention_without_heads_and_with_a_bias_for_each_pair_is_written(rows_of):
    def forward(net, x):
        y = net.first(x)
        y = F.scaled_dot_product_attention(y, y, y)
        y = y.view(-1, 5, 2, 4).transpose(1, 2)
        y = F.scaled_dot_product_attention(y, y, y, net.bias[None], scale=1.0)
        return net.head(y.transpose(1, 2).reshape(x.shape[0], 5, 8))

    parts = {"first": lambda: nn.Linear(8, 8), "bias": lambda: nn.Parameter(torch.randn(2, 5, 5)), "head": head()}
    model = Net(forward, **parts)
    assert told(rows_of(model, normal(5, 8))) == [("linear", True)] * 2


def test_a_mask_given_to_pytorchs_transformer_is_traced(rows_of):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = Net(
        lambda net, x: net.head(net.encoder(x, torch.full((5, 5), -torch.inf).triu(1))),
        encoder=lambda: nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), head=head(),
    )  # fmt: skip
    assert told(rows_of(model, normal(5, 8))) == [("linear", True)] * 5


def test_a_patch_layer_before_float_operators_keeps_its_bias(rows_of):
    """OpenVINO moves the bias into the rounding, where it is up to 15 steps off."""

    def forward(net, x):
        x = net.patch(x).flatten(2).transpose(1, 2)
        return net.head(net.norm(torch.cat([net.token.expand(x.shape[0], -1, -1), x], 1)))

    model = Net(
        forward, patch=lambda: nn.Conv2d(3, 8, 4, 4), token=lambda: nn.Parameter(torch.randn(1, 1, 8)),
        norm=lambda: nn.LayerNorm(8), head=head(),
    )  # fmt: skip
    assert told(rows_of(model, normal(3, 8, 8))) == [("conv", True), ("linear", True)]


def test_a_batch_norm_behind_a_mean_is_computed_as_in_torch(rows_of):
    model = Net(
        lambda net, x: net.head(net.norm((x + net.first(x)).mean(1))), first=lambda: nn.Linear(8, 8),
        norm=lambda: nn.BatchNorm1d(8), head=head(),
    )  # fmt: skip
    model.norm.running_mean.uniform_(-1, 1)
    model.norm.running_var.uniform_(0.1, 2)
    assert told(rows_of(model, normal(5, 8))) == [("linear", True)] * 2


def test_a_recurrent_layer_in_float_behind_an_int8_layer_keeps_its_state_in_float(rows_of):
    model = Net(
        lambda net, x: net.head(net.lstm(F.relu(net.conv(x)).flatten(2).transpose(1, 2))[0]),
        conv=lambda: nn.Conv2d(2, 8, 3, padding=1), lstm=lambda: nn.LSTM(8, 6, batch_first=True), head=head(6),
    )  # fmt: skip
    rows = rows_of(model, normal(2, 3, 2))
    assert [row.operator for row in rows if row.macs] == ["conv", "lstm", "linear"]


def test_heads_are_split_from_a_layer_without_a_bias(rows_of):
    def attend(net, x):
        q, k = (F.normalize(part(x).view(-1, 17, 2, 8), dim=-1).transpose(1, 2) for part in (net.q, net.k))
        return q @ k.transpose(-2, -1)

    model = Net(attend, q=lambda: nn.Linear(16, 16), k=lambda: nn.Linear(16, 16, bias=False))
    assert told(rows_of(model, normal(17, 16))) == [("linear", True), ("linear", True)]
