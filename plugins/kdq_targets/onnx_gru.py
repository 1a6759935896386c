"""A GRU as a Scan over int8 products, in two forms.

`gru_scan` computes the input's part of all steps in one product outside of the Scan: faster at small batches.
`gru_steps` computes it in each step, so that it need not write and read it: faster at large batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from kdq_targets.onnx_parts import Parts, find_constant
from kdq_targets.onnx_shrink import LABEL, mark

CONTRIB = "com.microsoft"
FEW = 64
"""A weight of at most so many levels is packed outside the Scan; at batch 1 a step then takes 10 % more."""


def gru_scan(parts: Parts, node: Any, x: Any, w: Any, r: Any) -> None:
    """Write one layer: one product for the inputs of all steps, then a Scan in each direction."""
    ways, gates, hidden = r.q.shape
    b = find_constant(parts, node.input[3]).reshape(ways, 2, gates)
    shares = _input_part(parts, x, w, b[:, 0])
    bodies = []
    for way in range(ways):
        weight = _outside(parts, f"r_{way}", r.q[way].T)
        bodies.append(_step(hidden, weight, r.scale[way], b[way, 1], f"{parts.label}.{way}."))
    _scan(parts, node, bodies, [shares[2 * way : 2 * way + 2] for way in range(ways)])


def gru_steps(parts: Parts, node: Any, x: Any, w: Any, r: Any) -> None:
    """Write one layer as a Scan over the integers of its input, with all products in the step."""
    ways, gates, hidden = r.q.shape
    b = find_constant(parts, node.input[3]).reshape(ways, 2, gates)
    grid = tuple(find_constant(parts, name) for name in x.input[1:3])
    bodies = []
    for way in range(ways):
        sides = []
        for name, side, part in (("w", w, 0), ("r", r, 1)):
            for gate, cut in (("gates", slice(2 * hidden)), ("new", slice(2 * hidden, None))):
                weight = _outside(parts, f"{name}_{gate}_{way}", side.q[way][cut].T)
                sides.append((weight, side.scale[way][cut], b[way, part][cut]))
        bodies.append(_whole_step(hidden, w.q.shape[2], grid, sides, f"{parts.label}.{way}."))
    _scan(parts, node, bodies, [[str(x.input[0])]] * ways)


def _outside(parts: Parts, name: str, weight: Any) -> Any:
    """The weight, or the name of it outside of the Scan if it has few levels and may be packed there."""
    return parts.constant(name, weight) if len(np.unique(weight)) <= FEW else weight


def _scan(parts: Parts, node: Any, bodies: list[Any], inputs: list[list[str]]) -> None:
    """Write a Scan in each direction, and the outputs of the layer."""
    outputs, ends = [], []
    for way, body in enumerate(bodies):
        index = parts.constant(f"way_{way}", np.array(way))
        first = parts.add("Gather", [str(node.input[5]), index], axis=0)
        last, made, count = f"{parts.prefix}last_{way}", f"{parts.prefix}made_{way}", len(inputs[way])
        steps = {"scan_output_directions": [way]} if node.output[0] else {}
        if not steps:  # only the last state is read
            body.node.pop()
            body.output.pop()
        parts.nodes.append(helper.make_node(
            "Scan", [first, *inputs[way]], [last, made][: len(body.output)], body=body,
            name=mark(f"{parts.label}.{way}") if way else parts.mark, num_scan_inputs=count,
            scan_input_directions=[way] * count, **steps,
        ))  # fmt: skip
        if steps:
            outputs.append(parts.add("Unsqueeze", [made, parts.constant(f"axis_1_{way}", np.array([1]))]))
        ends.append(parts.add("Unsqueeze", [last, parts.constant(f"axis_0_{way}", np.array([0]))]))
    for values, name, axis in zip((outputs, ends), node.output, (1, 0), strict=False):
        if name:
            parts.add("Concat", values, output=name, axis=axis)


def _input_part(parts: Parts, x: Any, w: Any, b: Any) -> list[str]:
    """The inputs' part of the gates, `[T, B, 2H]` and `[T, B, H]` for each direction, from one int8 Gemm."""
    ways, gates, width = w.q.shape
    step = (find_constant(parts, x.input[1]) * w.scale.reshape(-1)).astype(np.float32)
    integers = np.rint(b.reshape(-1).astype(np.float64) / step).astype(np.int32)
    rows = parts.add("Reshape", [str(x.output[0]), parts.constant("rows", np.array([-1, width]))])
    weight = parts.add("DequantizeLinear", [
        parts.constant("w", w.q.reshape(-1, width)), parts.constant("w_scale", w.scale.reshape(-1)),
        parts.constant("w_zero", np.zeros(ways * gates, dtype=np.int8)),
    ], axis=0)  # fmt: skip
    entry = parts.nodes[-1].metadata_props.add()
    entry.key, entry.value = LABEL, f"{parts.label}.input"
    bias = parts.add("DequantizeLinear", [parts.constant("b", integers), parts.constant("b_scale", step)], axis=0)
    flat = parts.add("Gemm", [rows, weight, bias], transB=1)
    shape = parts.add("Shape", [str(x.output[0])], end=2)
    shape = parts.add("Concat", [shape, parts.constant("width", np.array([ways * gates]))], axis=0)
    all_ways = parts.add("Reshape", [flat, shape])
    names = [f"{parts.prefix}share_{index}" for index in range(2 * ways)]
    sizes = parts.constant("shares", np.array([2 * gates // 3, gates // 3] * ways))
    parts.nodes.append(helper.make_node("Split", [all_ways, sizes], names, axis=2))
    return names


def _step(hidden: int, weight: Any, r_scale: Any, b: Any, prefix: str) -> Any:
    """Make the graph of one step and its constants.

    A step takes the state `[B, H]`, and the input's part of gates r and z, `[B, 2H]`, and of n, `[B, H]`. `weight` is
    the state's int8 weight `[H, 3H]`, or its name in the graph around the Scan.
    """
    h, q, m, m1, m2, x1, x2 = (f"{prefix}{name}" for name in ("h", "q", "m", "m1", "m2", "x1", "x2"))
    values = {
        "S": np.array(2.0 / 255.0, dtype=np.float32), "RS": np.ascontiguousarray(r_scale),
        "Z": np.array(128, dtype=np.uint8), "RZ": np.zeros(3 * hidden, dtype=np.int8), "B": np.ascontiguousarray(b),
        "N": np.array([2 * hidden, hidden]), "H": np.array([hidden, hidden]),
    }  # fmt: skip
    if not isinstance(weight, str):
        values["R"], weight = np.ascontiguousarray(weight), f"{prefix}R"
    tensors = [numpy_helper.from_array(value, f"{prefix}{name}") for name, value in values.items()]
    scale, r_scales, zero, r_zero, bias, sizes, halves = (tensor.name for tensor in tensors[:7])
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", [h, scale, zero], [q]),
        make("MatMulIntegerToFloat", [q, weight, scale, r_scales, zero, r_zero, bias], [m], domain=CONTRIB),
        make("Split", [m, sizes], [m1, m2], axis=1),
        *_gates(prefix, halves),
    ]
    kind = onnx.TensorProto.FLOAT
    shares = [helper.make_tensor_value_info(name, kind, ["batch", n * hidden]) for name, n in ((x1, 2), (x2, 1))]
    return _graph(prefix, hidden, nodes, shares, tensors)


def _whole_step(hidden: int, width: int, grid: tuple[Any, Any], sides: list[Any], prefix: str) -> Any:
    """Make the graph of one step that takes the state `[B, H]` and the integers of the input `[B, I]`.

    Args:
        hidden: H.
        width: I.
        grid: scale and zero point of the input.
        sides: weight, scales and bias of four products: input and state, each for the gates r and z, and for n.
        prefix: of all names.
    """
    values = {
        "S": np.array(2.0 / 255.0, dtype=np.float32), "Z": np.array(128, dtype=np.uint8),
        "XS": np.asarray(grid[0], dtype=np.float32), "XZ": np.asarray(grid[1]), "H": np.array([hidden, hidden]),
    }  # fmt: skip
    h, q, x = f"{prefix}h", f"{prefix}q", f"{prefix}x"
    s, z, xs, xz, halves = (f"{prefix}{name}" for name in values)
    nodes = [helper.make_node("QuantizeLinear", [h, s, z], [q])]
    for (weight, scale, bias), made in zip(sides, ("x1", "x2", "m1", "m2"), strict=True):
        values |= {
            f"{made}S": np.ascontiguousarray(scale), f"{made}Z": np.zeros(len(scale), dtype=np.int8),
            f"{made}B": np.ascontiguousarray(bias),
        }  # fmt: skip
        name = weight
        if not isinstance(weight, str):
            values[f"{made}W"], name = np.ascontiguousarray(weight), f"{prefix}{made}W"
        given, its_scale, its_zero = (x, xs, xz) if made.startswith("x") else (q, s, z)
        more = [f"{prefix}{made}{part}" for part in ("S", "Z", "B")]
        inputs = [given, name, its_scale, more[0], its_zero, *more[1:]]
        nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [f"{prefix}{made}"], domain=CONTRIB))
    nodes += _gates(prefix, halves)
    tensors = [numpy_helper.from_array(value, f"{prefix}{name}") for name, value in values.items()]
    given = helper.make_tensor_value_info(x, onnx.TensorProto.UINT8, ["batch", width])
    return _graph(prefix, hidden, nodes, [given], tensors)


def _gates(prefix: str, halves: str) -> list[Any]:
    """Nodes from the four products (x1, m1 for the gates r and z; x2, m2 for n) and the state to the next state."""
    names = ("h", "m1", "m2", "x1", "x2", "s", "g", "r", "z", "p", "t", "n", "d", "e", "out", "y")
    h, m1, m2, x1, x2, s, g, reset, keep, p, t, new, d, e, out, y = (f"{prefix}{name}" for name in names)
    make = helper.make_node
    return [
        make("Sum", [m1, x1], [s]),
        make("Sigmoid", [s], [g]),
        make("Split", [g, halves], [reset, keep], axis=1),
        make("Mul", [reset, m2], [p]),
        make("Sum", [x2, p], [t]),
        make("Tanh", [t], [new]),
        make("Sub", [h, new], [d]),
        make("Mul", [keep, d], [e]),
        make("Sum", [new, e], [out]),
        make("Identity", [out], [y]),
    ]


def _graph(prefix: str, hidden: int, nodes: list[Any], given: list[Any], tensors: list[Any]) -> Any:
    """The graph of one step: the state and further inputs in, the next state and the output out."""
    h, *made = (
        helper.make_tensor_value_info(f"{prefix}{name}", onnx.TensorProto.FLOAT, ["batch", hidden])
        for name in ("h", "out", "y")
    )
    return helper.make_graph(nodes, "step", [h, *given], made, tensors)
