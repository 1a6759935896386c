"""Takes a model of the zoo to files for both targets, after training, by calibration and by two steps of QAT.

With KDQ_ZOO=FILE the run writes what it measured there, as JSON, and keeps what the file says of other models.
"""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch

from kdq_core.quantization.capture import capture
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_targets.openvino_cpu import OpenVinoCpu
from kdq_targets.openvino_kernels import OpenVinoKernels
from kdq_targets.ort_kernels import optimized_graph

TARGETS = {"onnxruntime-cpu": OnnxRuntimeCpu, "openvino": OpenVinoCpu}
OFTEN = {"PoolFormer": (("openvino", "minmax-qat"),), "LeViT": (("openvino", "static"),)}
"""Models that `make test` takes too, each in these ways alone unless KDQ_ZOO is set; the others are marked `rare`."""


def pytest_collection_modifyitems(items):
    here = str(Path(__file__).parent)
    for item in items:
        if str(item.path).startswith(here) and item.callspec.params["name"] not in OFTEN:
            item.add_marker(pytest.mark.rare)


@pytest.fixture(scope="session")
def table():
    rows, reasons = {}, {}
    yield rows, reasons
    if rows and "KDQ_ZOO" in os.environ:
        path = Path(os.environ["KDQ_ZOO"])
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"models": {}, "reasons": {}}
        for family, models in rows.items():
            known["models"].setdefault(family, {}).update(models)
        for kind, said in reasons.items():
            known["reasons"][kind] = sorted({*known["reasons"].get(kind, ()), *said})
        path.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n", encoding="utf-8")


def share(rows, amount):
    return round(sum(amount(row) for row in rows if row.int8) / sum(amount(row) for row in rows), 4)


def samples(specs):
    """Makes inputs: a tuple is the shape of normal numbers; a dict asks for tokens, or for a mask of a length."""

    def one(spec, count, data):
        if isinstance(spec, tuple):
            return torch.randn(count, *spec, generator=data)
        if "mask" in spec:
            lengths = torch.randint(1, spec["mask"] + 1, (count, 1), generator=data)
            return (torch.arange(spec["mask"]) < lengths).long()
        return torch.randint(spec["tokens"], (count, spec["length"]), generator=data)

    return lambda count, data: tuple(one(spec, count, data) for spec in specs)


def trained(make, inputs):
    """A model whose batch norms have seen data."""
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.7
    for _ in range(3):
        model(*inputs(64, torch.Generator().manual_seed(7)))
    return model.eval()


def runs(target, path):
    """How many convolutions and linear layers the runtime's own graph computes in int8, and whether recurrent ones."""
    if isinstance(target, OpenVinoCpu):
        layers = [kernel for kernel in OpenVinoKernels(path).kernels if kernel.endswith(("_u8", "_i8"))]
        return sum(layer.startswith(("Convolution", "FullyConnected", "MatMul")) for layer in layers), False
    names = [node.op_type for node in optimized_graph(path).node if not node.name.endswith(".input>")]  # a GRU's part
    recurrent = {"DynamicQuantizeLSTM", "Scan"} & set(names)
    return sum(name in ("QLinearConv", "QGemm", "QLinearMatMul") for name in names), bool(recurrent)


def claims(rows):
    """The same by coverage."""
    int8 = [row.operator for row in rows if row.int8]
    return sum(kind in ("conv", "linear") for kind in int8), bool({"lstm", "gru"} & set(int8))


@pytest.fixture
def ships(simulated, compared, table, tmp_path, request):
    """Gives a function: name, factory, specs of the inputs -> nothing; the files are as good as was promised."""

    def ships(name, make, specs):
        inputs = samples(specs)
        model, problems = trained(make, inputs), []
        graph = capture(model, inputs(2, torch.Generator().manual_seed(1)))
        measured = table[0].setdefault(request.module.__name__.rpartition("test_")[2], {}).setdefault(name, {})
        ways = tuple(itertools.product(TARGETS, ("static", "minmax-qat")))
        if name in OFTEN and "KDQ_ZOO" not in os.environ:
            ways = OFTEN[name]
        for target_name, quantizer in ways:
            way, folder = f"{target_name} {quantizer}", tmp_path / target_name
            again = folder.is_dir()
            folder.mkdir(exist_ok=True)
            target, data = TARGETS[target_name](reduce_range="on"), torch.Generator().manual_seed(1)
            _, prepared = simulated(graph, inputs, target, quantizer, data)
            parity = compared(model, prepared, target, inputs, folder, data, samples=256, again=again)
            rows = target.coverage(folder / "int8.onnx", graph)
            floats = [row for row in rows if not row.int8]
            for row in floats:
                table[1].setdefault(row.operator, set()).add(row.reason)
            measured[way] = {
                "parity": round(parity, 2),
                "weights": share(rows, lambda row: row.macs),
                "products": share(rows, lambda row: row.macs + row.activation_macs),
                "float": sorted({row.operator for row in floats}),
                "float layers": sorted({f"{row.operator} {row.path}" for row in floats if row.macs}),
            }
            if parity > 1.01:
                problems.append(f"{way}: parity {parity:.2f} LSB")
            if any(row.int8 != (row.reason == "") for row in rows):
                problems.append(f"{way}: reasons {rows}")
            if claims(rows) != (found := runs(target, folder / "int8.onnx")):
                problems.append(f"{way}: {claims(rows)} int8 layers by coverage, {found} by the runtime")
        assert not problems, "\n".join(problems)

    return ships
