"""Layers that are integer only in part: float arithmetic on stored integers, and ranges measured for each batch.

ONNX Runtime keeps a DequantizeLinear in front of a float layer and runs it at every call, which takes longer than the
layer itself. It folds `Cast` and `Mul` on constants when it loads the file, so KDQ writes those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxscript import opset18 as op

from kdq_targets.onnx_shrink import LABEL


def dynamic_linear(x: Any, weight: Any, weight_scale: Any, bias: Any, label: str) -> Any:
    """Write DynamicQuantizeLinear and MatMulInteger, which the runtime fuses into one operator."""
    q, scale, zero = op.DynamicQuantizeLinear(x)
    product = op.MatMulInteger(q, op.Transpose(weight, perm=[1, 0]), zero)
    product.producer().metadata_props[LABEL] = label
    y = op.Mul(op.Cast(product, to=onnx.TensorProto.FLOAT), op.Mul(scale, weight_scale))
    return y if bias is None else op.Add(y, bias)


def widen(proto: Any) -> None:
    """Replace each DequantizeLinear with scales `[C, G]` in a fresh ONNX model by Cast and Mul, in place."""
    graph = proto.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        scale = tensors.get(node.input[1]) if node.op_type == "DequantizeLinear" else None
        if scale is None or len(scale.dims) != 2:
            graph.node.append(node)
        else:
            graph.node.extend(_decoder(graph, node, tensors[node.input[0]], numpy_helper.to_array(scale)))
            graph.node[-1].metadata_props.extend(node.metadata_props)


def _decoder(graph: Any, node: Any, weight: Any, scale: np.ndarray) -> list[Any]:
    """Nodes that turn integers `[C, I, ...]` into floats: directly for one scale per channel, else as `[C, G, N]`."""
    name, shape = str(node.output[0]), [int(size) for size in weight.dims]
    parts = [*scale.shape, -1] if scale.shape[1] > 1 else None

    def constant(kind: str, values: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), f"{name}_{kind}"))
        return f"{name}_{kind}"

    factors = constant(
        "factors", scale.reshape(-1, *([1] * (len(shape) - 1)) if parts is None else (scale.shape[1], 1))
    )
    wide = helper.make_node("Cast", [weight.name], [f"{name}_wide"], to=onnx.TensorProto.FLOAT)
    if parts is None:
        return [wide, helper.make_node("Mul", [f"{name}_wide", factors], [name])]
    cut, whole = constant("cut", np.array(parts, np.int64)), constant("whole", np.array(shape, np.int64))
    return [
        wide,
        helper.make_node("Reshape", [f"{name}_wide", cut], [f"{name}_parts"]),
        helper.make_node("Mul", [f"{name}_parts", factors], [f"{name}_scaled"]),
        helper.make_node("Reshape", [f"{name}_scaled", whole], [name]),
    ]
