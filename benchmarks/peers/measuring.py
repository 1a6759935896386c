"""Measure a file that a tool made, by one method for all: `python -m benchmarks.peers.measuring CASE OUT SIZE`.

Runs in KDQ's environment. Reads `made.json` and writes `measured.json` beside it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.cases import Case
from benchmarks.peers.data import Data, read
from benchmarks.peers.nets import NETS
from benchmarks.peers.workbench import message

if TYPE_CHECKING:
    import numpy as np

AT_ONCE = 250
INT8 = (
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "QAttention", "DynamicQuantizeLSTM",
)  # fmt: skip
FLOATS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM", "GRU")
OPENVINO_LAYERS = ("Convolution", "FullyConnected", "MatMul", "GroupConvolution")


def in_onnxruntime(path: Path, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, float]:
    """Return the file's answers, and the share of convolutions and products that int8 kernels compute."""
    import numpy as np
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    names = [one.name for one in session.get_inputs()]
    answers = [session.run(None, dict(zip(names, batch, strict=True)))[0] for batch in _batches(inputs)]
    return np.concatenate(answers), _share([kind in INT8 for kind in kinds if kind in INT8 + FLOATS])


def in_openvino(path: Path, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, float]:
    """Do the same in OpenVINO, whose graph tells the precision of each layer."""
    import numpy as np
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", options)
    answers = [next(iter(compiled(list(batch)).values())) for batch in _batches(inputs)]
    int8 = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        if "layerType" in facts and str(facts["layerType"].astype(str)) in OPENVINO_LAYERS:
            int8.append(str(facts["runtimePrecision"].astype(str)) in ("i8", "u8"))
    return np.concatenate(answers), _share(int8)


def _batches(inputs: tuple[np.ndarray, ...]) -> list[tuple[np.ndarray, ...]]:
    return [tuple(part[at : at + AT_ONCE] for part in inputs) for at in range(0, len(inputs[0]), AT_ONCE)]


def _share(int8: list[bool]) -> float:
    return sum(int8) / len(int8) if int8 else 0.0


def quality(case: Case, data: Data, answers: np.ndarray) -> float:
    """Top-1 in %, or RMSE."""
    import numpy as np

    if NETS[case.net].ratings:
        return float(np.sqrt(np.mean((answers - data.test.labels) ** 2)))
    return 100 * float((answers.argmax(1) == data.test.labels).mean())


def ties(answers: np.ndarray) -> np.ndarray:
    """Tell for which samples the two largest logits are equal, bool `[N]`."""
    import numpy as np

    two = np.sort(answers, 1)[:, -2:]
    tied: np.ndarray = two[:, 0] == two[:, 1]
    return tied


def flips(file: np.ndarray, simulated: np.ndarray) -> int:
    """Count the samples whose class differs although neither side has a tie."""
    differs = file.argmax(1) != simulated.argmax(1)
    return int((differs & ~ties(file) & ~ties(simulated)).sum())


def stripped(path: Path) -> int:
    """Count the bytes of an ONNX file without the exporter's metadata and annotations."""
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for name in ("value_info", "metadata_props", "doc_string"):
        model.graph.ClearField(name)
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
    model.ClearField("metadata_props")
    return int(model.ByteSize())


def measured(case: Case, out: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Measure a file: quality, flips, ties, int8 share, bytes."""
    import numpy as np

    path, data = out / made["file"], read(case.net, out)
    found: dict[str, Any] = {}
    told = made.get("told") or {}
    simulated = path.with_name("simulated.npy")
    points = 1.0 if NETS[case.net].ratings else 100.0
    if simulated.is_file():
        found["simulated"] = quality(case, data, np.load(simulated))
    elif told.get("simulated") is not None:
        found["simulated"] = points * told["simulated"]
    if told.get("student") is not None:
        found["student"] = points * told["student"]
    try:
        answers, share = (in_openvino if case.openvino else in_onnxruntime)(path, data.test.inputs)
    except Exception as error:
        return {**found, "refused": message(error)}
    found |= {"quality": quality(case, data, answers), "int8": share}
    if not NETS[case.net].ratings:
        found["ties"] = int(ties(answers).sum())
        if simulated.is_file():
            found["flips"] = flips(answers, np.load(simulated))
        elif told.get("flips") is not None:
            found["flips"] = int(told["flips"])
    weights = path.with_suffix(".bin")
    found["bytes"] = path.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)
    if path.suffix == ".onnx":
        found["stripped"] = stripped(path)
    return found


if __name__ == "__main__":
    chosen, where = Case(**json.loads(sys.argv[1])), Path(sys.argv[2])
    folder = where / "cases" / chosen.name
    facts = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    (folder / "measured.json").write_text(json.dumps(measured(chosen, where, facts)), encoding="utf-8")
