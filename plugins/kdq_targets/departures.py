"""Compare a shipped file with its simulation layer by layer: which integers differ, and where first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from kdq_core.api import Departure, Session, module_path, quantize
from kdq_targets.onnx_operators import FOLDED
from kdq_targets.onnx_shrink import THROUGH, mark, mark_behind

QUANTIZE = quantize._opoverload
KINDS = {"uint8": onnx.TensorProto.UINT8, "int8": onnx.TensorProto.INT8}


def departures_of_file(
    path: Path,
    simulation: GraphModule,
    inputs: tuple[np.ndarray, ...],
    load: Callable[[Path], Session],
    *,
    before_clip: bool = False,
) -> tuple[Departure, ...]:
    """List the integer tensors that differ between file and simulation, in the order of the simulation's graph.

    KDQ runs the file with those tensors as further outputs. This does not change the runtime's int8 kernels.

    Args:
        path: the file.
        simulation: the converted model that the file was written from.
        inputs: one batch.
        load: loads a file into the runtime.
        before_clip: the runtime shows a tensor before it clips it, so this function clips it.
    """
    ours = _simulated(simulation, inputs)
    dtypes = {name: mine.dtype.name for _, names, _, mine in ours for name in names}
    theirs = _answered(path, inputs, load, dtypes)
    found = []
    for node, names, limits, mine in ours:
        value = next((theirs[name] for name in names if name in theirs), None)
        if value is None or value.size != mine.size:
            continue
        value = np.clip(value, *limits) if before_clip else value
        away = np.abs(value.reshape(mine.shape).astype(np.int64) - mine)
        if away.any():
            share = float(np.count_nonzero(away) / away.size)
            found.append(
                Departure(path=module_path(node) or node.name, operator=node.name, share=share, most=int(away.max()))
            )
    return tuple(found)


Quantized = tuple[Node, tuple[str, ...], tuple[int, int], np.ndarray]
"""The node that makes a tensor, the marks it may have in the file, the tensor's range and its integers."""


def _simulated(model: GraphModule, inputs: tuple[np.ndarray, ...]) -> list[Quantized]:
    """Run the simulation and collect its quantized tensors, in the order of the graph."""
    found: list[Quantized] = []

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n.target == QUANTIZE and isinstance(value, Tensor):
                maker = n.args[0]
                while isinstance(maker, Node) and maker.target in FOLDED:  # folded into the kernel before it
                    maker = maker.args[0]
                assert isinstance(maker, Node)
                limits = cast("tuple[int, int]", n.args[3:5])
                found.append((maker, (mark_behind(str(n.args[5])), mark(maker.name)), limits, value.numpy()))
            return value

    with torch.no_grad():
        Recorder(model).run(*(torch.from_numpy(x) for x in inputs))
    return found


def _answered(
    path: Path, inputs: tuple[np.ndarray, ...], load: Callable[[Path], Session], dtypes: dict[str, str]
) -> dict[str, np.ndarray]:
    """Run the file and return the integers after the marked operators, by mark."""
    proto = onnx.load(str(path))
    graph = proto.graph
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    spots: dict[str, str] = {}
    for node in graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        while maker is not None and maker.op_type in THROUGH and maker.name not in dtypes:
            maker = makers.get(maker.input[0])
        if maker is not None and maker.name in dtypes:
            clip = [reader for reader in readers.get(node.output[0], ()) if reader.op_type == "Clip"]
            spots.setdefault(maker.name, clip[0].output[0] if clip else node.output[0])
    present = {output.name for output in graph.output}
    for name, value in spots.items():
        if value not in present:
            graph.output.append(onnx.helper.make_tensor_value_info(value, KINDS[dtypes[name]], None))
    with tempfile.TemporaryDirectory() as folder:
        opened = Path(folder) / path.name
        opened.write_bytes(proto.SerializeToString())
        values = dict(zip((output.name for output in graph.output), load(opened).run(inputs), strict=True))
    return {name: values[value] for name, value in spots.items()}
