"""Files written for ONNX Runtime: what runs, what it says of itself, and that it is the simulation."""

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.api import StageError
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu, cpu_saturates


def norm_conv(i, o, size, stride):
    return nn.Sequential(nn.Conv2d(i, o, size, stride, size // 2, bias=False), nn.BatchNorm2d(o))


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.one, self.two = norm_conv(i, o, 3, stride), norm_conv(o, o, 3, 1)
        self.short = nn.Identity() if i == o else norm_conv(i, o, 1, stride)

    def forward(self, x):
        return F.relu(self.two(F.relu(self.one(x))) + self.short(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = norm_conv(1, 24, 3, 1)
        self.blocks = nn.Sequential(Block(24, 24, 1), Block(24, 48, 2), Block(48, 72, 2))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(72, 10)

    def forward(self, x):
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def shipped(model, shape, folder, float_file=False, keep_float=(), **options):
    """Train a little, convert, export; also the float file."""
    torch.manual_seed(0)
    target = OnnxRuntimeCpu(**{"reduce_range": "on", **options})
    example = (torch.randn(2, *shape),)
    graph = capture(model, example)
    prepared = prepare(graph, target.places(graph, keep_float=keep_float), MinMaxQat())
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        prepared(torch.randn(32, *shape)).square().mean().backward()
        optimizer.step()
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    converted = convert(prepared)
    path, float_path = folder / "int8.onnx", folder / "float.onnx"
    target.export(converted, example, path)
    if float_file:
        target.export(model, example, float_path)
    return SimpleNamespace(
        target=target, graph=graph, converted=converted, path=path, float_path=float_path, example=example, model=model
    )


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(0)
    return shipped(ResNet(), (1, 8, 8), tmp_path_factory.mktemp("resnet"), float_file=True)


def compare(files, shape, samples=500):
    """Differences in LSB, and answers that differ beyond ties."""
    x = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        simulated = files.converted(x).numpy()
    (answers,) = files.target.session(files.path, threads=1).run((x.numpy(),))
    (scale,) = output_scales(files.converted)
    best = [np.sort(y, axis=1) for y in (simulated, answers)]
    tied = np.any([y[:, -1] == y[:, -2] for y in best], axis=0)
    return np.abs(simulated - answers) / (scale or 1), (simulated.argmax(1) != answers.argmax(1)) & ~tied


def test_every_operator_of_a_residual_network_runs_in_an_int8_kernel(resnet):
    rows = resnet.target.coverage(resnet.path, resnet.graph)
    kernels = [(row.operator, row.kernel) for row in rows]
    assert kernels.count(("conv", "QLinearConv")) == 9
    assert kernels.count(("add", "QLinearAdd")) == 3
    assert kernels.count(("pool", "QLinearGlobalAveragePool")) == 1
    assert kernels.count(("linear", "QGemm")) == 1
    assert len(rows) == 14
    assert all(row.int8 and row.reason == "" for row in rows)
    one = next(row for row in rows if row.path == "blocks.1.short.0")
    assert (one.macs, one.weight_bytes) == (4 * 4 * 48 * 24, 48 * 24)


def test_the_file_gives_the_answers_of_the_converted_model(resnet):
    lsb, flips = compare(resnet, (1, 8, 8), samples=1000)
    assert np.quantile(lsb, 0.99) <= 1.01
    assert lsb.mean() < 0.01
    assert not flips.any()


def test_the_int8_file_is_3_7_times_smaller_than_the_float_file(resnet):
    assert sum(p.numel() for p in resnet.model.parameters()) >= 100_000
    assert resnet.float_path.stat().st_size / resnet.path.stat().st_size >= 3.7


def test_the_float_file_gives_the_answers_of_the_model(resnet):
    x = torch.randn(7, 1, 8, 8)
    (answers,) = resnet.target.session(resnet.float_path, threads=1).run((x.numpy(),))
    with torch.no_grad():
        np.testing.assert_allclose(answers, resnet.model.eval()(x).numpy(), atol=1e-5)


def test_files_are_self_contained_byte_deterministic_and_bare(resnet, tmp_path):
    for model, path in ((resnet.converted, resnet.path), (resnet.model, resnet.float_path)):
        again = tmp_path / path.name
        resnet.target.export(model, resnet.example, again)
        assert again.read_bytes() == path.read_bytes()
        proto = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(proto, full_check=True)
        assert not any(tensor.HasField("data_location") and tensor.data_location for tensor in proto.graph.initializer)
        assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
        assert b".py" not in path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_the_signature_names_inputs_and_outputs_with_a_free_batch(resnet):
    ((given,), (made,)) = resnet.target.signature(resnet.path)
    assert (given.name, given.dtype, given.shape) == ("input", "float32", (-1, 1, 8, 8))
    assert (made.name, made.dtype, made.shape) == ("logits", "float32", (-1, 10))


def test_a_bare_session_gives_the_same_numbers(resnet):
    x = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    bare = onnxruntime.InferenceSession(str(resnet.path), providers=["CPUExecutionProvider"])
    (answers,) = resnet.target.session(resnet.path, threads=1).run((x,))
    np.testing.assert_array_equal(bare.run(None, {"input": x})[0], answers)


class Mixed(nn.Module):
    """Biases, ReLU6, depthwise, squeeze-and-excite, both poolings, concat, a layer with no batch-norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.six = nn.ReLU6(inplace=True)
        depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(8), nn.ReLU())
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.hidden, self.head = nn.Linear(64, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.six(self.stem(x))
        y = self.depthwise(F.max_pool2d(x, 2))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = torch.cat([y, F.avg_pool2d(x, 2)], 1)
        return self.head(F.relu(self.hidden(F.avg_pool2d(y, 2).flatten(1))))


def test_other_operators_run_in_int8_kernels_too(tmp_path):
    files = shipped(Mixed(), (3, 8, 8), tmp_path)
    rows = files.target.coverage(files.path, files.graph)
    assert {row.kernel for row in rows} == {
        "QLinearConv", "QLinearMul", "QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool", "QGemm",
        "QLinearSigmoid",
    }  # fmt: skip
    lsb, flips = compare(files, (3, 8, 8))
    assert np.quantile(lsb, 0.99) <= 1.01
    assert not flips.any()


class Skip(nn.Module):
    """A conv between two quantized tensors: the runtime would round its weight by itself."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.hidden, self.head = nn.Linear(128, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.one(x))
        return self.head(self.hidden(F.max_pool2d(x + self.two(x), 2).flatten(1)))


def test_a_layer_kept_float_stays_float_and_says_why(tmp_path):
    files = shipped(Skip(), (1, 8, 8), tmp_path, keep_float=("two:conv", "hidden:linear"))
    rows = {
        row.path: row
        for row in files.target.coverage(files.path, files.graph, keep_float=("two:conv", "hidden:linear"))
    }
    for path, kernels, weight_bytes in (("two", {"Conv", "FusedConv"}, 2304), ("hidden", {"Gemm", "FusedGemm"}, 8192)):
        kept = rows.pop(path)
        assert kept.kernel in kernels
        assert (kept.int8, kept.weight_bytes) == (False, weight_bytes)
        assert kept.reason == "left in float by a rule of the recipe"
    assert [(row.operator, row.reason) for row in rows.values() if not row.int8] == [
        ("add", "its result goes to float operators only")
    ]
    lsb, flips = compare(files, (1, 8, 8))
    assert lsb.mean() < 0.05
    assert not flips.any()


class Pooled(nn.Module):
    """Operators of the model's own forward, of two types."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = self.one(x) + self.two(x)
        return self.head(F.adaptive_avg_pool2d(torch.cat([x, F.avg_pool2d(x, 3, 1, 1)], 2), 1).flatten(1))


@pytest.mark.parametrize(
    ("skipped", "expected"),
    [
        ((), ["QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool"]),
        ((":concat",), ["Add", "AveragePool", "Concat", "GlobalAveragePool"]),
        ((":add",), ["Add", "AveragePool", "Concat", "GlobalAveragePool"]),
    ],
)
def test_an_operator_of_the_models_own_forward_can_stay_float(tmp_path, skipped, expected):
    files = shipped(Pooled(), (1, 8, 8), tmp_path, keep_float=skipped)
    rows = files.target.coverage(files.path, files.graph, keep_float=skipped)
    between = [row for row in rows if row.operator not in ("conv", "linear")]
    assert [row.kernel for row in between] == expected
    named = {f":{row.operator}" for row in between if row.reason == "left in float by a rule of the recipe"}
    assert named == set(skipped)
    assert all(row.int8 for row in rows if row.operator in ("conv", "linear"))


def test_what_moves_data_repeats_the_grid_of_its_input():
    class Moves(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(16, 2)

        def forward(self, x):
            return self.head(F.max_pool2d(x, 2).flatten(1))

    graph = capture(Moves(), (torch.randn(2, 4, 4, 4),))
    target = OnnxRuntimeCpu(reduce_range="off")
    weight, given, pool, flat, made = target.places(graph)
    assert (weight.qmin, weight.qmax, weight.axis, weight.channels) == (-127, 127, 0, 2)
    assert (given.name, given.shared_with) == ("x:input", None)
    assert pool.shared_with == flat.shared_with == "x:input"
    assert made.shared_with is None
    assert OnnxRuntimeCpu(reduce_range="on").places(graph)[0].qmax == 63


def test_a_place_says_which_operator_made_it(resnet):
    places = {place.node: place for place in resnet.target.places(resnet.graph)}
    said = [(p.path, p.operator) for p in places.values() if p.role == "activation"]
    assert said[:3] == [("", "input"), ("stem.0", "conv"), ("blocks.0.one.0", "conv")]
    assert ("blocks.0", "add") in said
    assert said[-1] == ("head", "linear")
    weights = {p.name: (p.path, p.operator) for p in places.values() if p.role == "weight"}
    assert weights["blocks.1.short.0.weight"] == ("blocks.1.short.0", "conv")
    flat = next(p for p in places.values() if p.shared_with)
    assert (flat.path, flat.operator) == (places["adaptive_avg_pool2d"].path, "pool")


@pytest.mark.parametrize(
    ("text", "machine", "saturates"),
    [
        ("flags\t\t: fpu avx2\n", "x86_64", True),
        ("flags\t\t: fpu avx512f avx512_vnni\n", "x86_64", False),
        ("flags\t\t: avx2 avx_vnni\n", "AMD64", False),
        ("Features\t: asimd asimddp\n", "aarch64", False),
    ],
)
def test_the_range_is_reduced_on_x86_without_vnni(tmp_path, text, machine, saturates):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert cpu_saturates(file, machine) is saturates
    assert OnnxRuntimeCpu(reduce_range="on").resolved() == {"reduce_range": True}
    assert OnnxRuntimeCpu().resolved() == {"reduce_range": cpu_saturates()}


def test_a_missing_or_damaged_file_and_a_wrong_input_are_refused(resnet, tmp_path):
    target, bad = OnnxRuntimeCpu(), tmp_path / "bad.onnx"
    with pytest.raises(StageError) as caught:
        target.session(bad, threads=1)
    assert str(caught.value) == f"ONNX file {str(bad)!r} does not exist; export it again"
    bad.write_bytes(b"no model")
    with pytest.raises(StageError, match="the file is damaged: export it again"):
        target.signature(bad)
    session = target.session(resnet.path, threads=1)
    with pytest.raises(StageError) as caught:
        session.run(())
    assert str(caught.value) == "the file takes 1 inputs and was given 0"
    with pytest.raises(StageError, match="ONNX Runtime cannot run the file on this input"):
        session.run((np.zeros((2, 3, 8, 8), dtype=np.float32),))


def test_coverage_of_another_models_file_is_refused(resnet):
    graph = capture(nn.Sequential(nn.Linear(3, 2)), (torch.randn(2, 3),))
    with pytest.raises(StageError, match="was not written from this model; export it again"):
        resnet.target.coverage(resnet.path, graph)


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


HERE = Path(__file__).resolve()


def line(model):
    return inspect.getsourcelines(model)[1] + 2


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (Bessel(), "DispatchError: No ONNX function found for <OpOverload(op='prims.bessel_j0', overload='default')>. "
         "Failure message: No decompositions registered for the real-valued input; replace the operator by one that "
         f"ONNX knows (operator prims.bessel_j0.default, module '1', {HERE}:{line(Bessel)})"),
        (nn.AdaptiveAvgPool2d(4), "adaptive average pooling of [6, 6] to [4, 4] has no ONNX twin; use sizes that "
         "divide (operator aten.adaptive_avg_pool2d.default, module '1')"),
        (Branch(), "module '1' needs the value of a tensor, which a graph does not know "
         f"({HERE}:{line(Branch)}: return x if x.sum() > 0 else -x); compute both ways and choose with torch.where, "
         "keep numbers as tensors in place of .item(), or move the decision out of the model"),
    ],
    ids=["operator", "sizes", "branch"],
)  # fmt: skip
def test_what_has_no_onnx_form_is_refused_with_its_line_and_nothing_is_left(last, text, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), last)
    with pytest.raises(StageError) as caught:
        OnnxRuntimeCpu().export(model, (torch.randn(2, 1, 8, 8),), tmp_path / "model.onnx")
    assert str(caught.value) == f"model 'Sequential' cannot be written as ONNX: {text}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.isa
def test_rows_of_zeros_and_constant_activations_ship_as_simulated(ship, both):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Conv2d(1, 8, 3, bias=False), nn.Conv2d(8, 8, 3)
            self.norm, self.side, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4), nn.Linear(8, 4)
            for layer in (self.stem, self.body, self.side, self.head):
                nn.init.zeros_(layer.weight[1])

        def forward(self, x):
            y = F.relu(self.body(F.relu(self.norm(self.stem(x))))).mean((2, 3))
            return self.head(y) + self.side(y * 0 + 3)

    assert both(ship(Odd(), (1, 8, 8), OnnxRuntimeCpu(), weights=4, activations=4)).max() <= 1


def test_naming_the_target_loads_neither_torch_nor_onnx():
    code = (
        "import sys; from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu; OnnxRuntimeCpu().resolved(); "
        "import kdq_quantizers.minmax_qat; print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
