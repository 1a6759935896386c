"""Attention with the batch first, also where one product makes query, key and value: `nn.MultiheadAttention`.

PyTorch puts the length first, computes them in one product, and cuts and transposes it; ONNX Runtime would copy the
whole batch about eight times a layer. KDQ writes three products, whose weights are parts of one constant, with the
batch first. Each number is computed as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper

from kdq_targets.onnx_attention import Core, find_cores, write_operator, write_separate
from kdq_targets.onnx_view import View, attribute

LENGTH_FIRST = (1, 0, 2)
CHANGED = {"AveragePool", "Conv", "ConvTranspose", "DFT", "GridSample", "GroupNormalization", "Resize"}
"""Operators that ONNX, or ONNX Runtime, treats otherwise in the opset of `Attention` than in that of other files."""


@dataclass(frozen=True)
class Frame:
    """What stands around an attention: the way in from `[B, L, W]` and the way out to `[B, L, E]`.

    `turned` puts the length first, `gemm` makes query, key and value, `back` puts the length first again, and behind
    a further product the nodes `cut` and `end` put the batch first.
    """

    turned: Any
    gemm: Any
    back: Any
    cut: Any
    end: Any
    length: int


def fuse_attention(graph: Any) -> None:
    """Write each attention without a mask as `Attention`, in place."""
    if any(node.op_type in CHANGED for node in graph.node):
        return
    view = View(graph)
    for core in find_cores(view):
        if not write_separate(view, core):
            write_packed(view, core)
    view.finish()


def write_packed(view: View, core: Core) -> None:
    """Write an attention with the batch first if its heads are thirds of one product."""
    frame = _frame(view, core)
    if frame is None:
        return
    names, nodes = _thirds(view, frame, core)
    view.bypass(frame.turned)
    write_operator(view, core, names, nodes)
    view.bypass(frame.back)
    view.bypass(frame.cut)
    size = view.add(f"{frame.end.output[0]}_shape", [-1, frame.length, view.shape(frame.cut)[2]])
    view.instead[id(frame.end)] = [helper.make_node("Reshape", [frame.end.input[0], size], list(frame.end.output))]


def _frame(view: View, core: Core) -> Frame | None:
    length, whole = view.dims(core.q)[2], core.heads * core.width
    gemms = [_third(view, value, index, core, length) for index, value in enumerate((core.q, core.k, core.v))]
    gemm = gemms[0]
    if gemm is None or any(one is not gemm for one in gemms) or view.dims(core.k)[2] != length:
        return None
    rows = view.maker(gemm.input[0], "Reshape")
    turned = None if rows is None or not view.alone(rows.output[0]) else _turned(view, str(rows.input[0]))
    given = [] if turned is None else view.dims(turned.input[0])
    if len(given) != 3 or given[1] != length or view.shape(rows) != [-1, given[2]]:
        return None
    if view.dims(gemm.input[1]) != [3 * whole, given[2]] or not _can_be_cut(view, gemm):
        return None
    back = view.next_rounded(core.name, "Transpose", (2, 0, 1, 3))
    flat = None if back is None else view.next_rounded(back.output[0], "Reshape")
    out = None if flat is None or view.shape(flat) != [-1, whole] else view.next_rounded(flat.output[0], "Gemm")
    cut = None if out is None or attribute(out, "transA", 0) else view.next_rounded(out.output[0], "Reshape")
    end = None if cut is None else view.next_rounded(cut.output[0], "Transpose", LENGTH_FIRST)
    made = [] if out is None else view.dims(out.input[1])
    if end is None or not attribute(out, "transB", 0) or view.shape(cut) != [length, -1, (*made, 0)[0]]:
        return None
    return Frame(turned, gemm, back, cut, end, length)


def _third(view: View, value: str, index: int, core: Core, length: int) -> Any:
    """The Gemm whose third `index` has the heads `value`, through nodes that nothing else reads; else `None`."""
    heads, width = core.heads, core.width
    steps: tuple[tuple[str, Any], ...] = (
        ("Reshape", [-1, heads, length, width]), ("Transpose", LENGTH_FIRST), ("Reshape", [length, -1, width]),
        ("Gather", index), ("Squeeze", [-2]), ("Transpose", (3, 1, 2, 0, 4)), ("Unsqueeze", [0]),
        ("Reshape", [length, -1, 3, heads * width]), ("Gemm", None),
    )  # fmt: skip
    node = None
    for kind, wanted in steps:
        node = view.maker(value, kind, wanted if kind == "Transpose" else None)
        if node is None or (value != core.k and len(view.readers[value]) != (3 if kind == "Squeeze" else 1)):
            return None
        if kind in ("Reshape", "Squeeze", "Unsqueeze") and view.shape(node) != wanted:
            return None
        if kind == "Gather" and (attribute(node, "axis", 0) or view.constant(node.input[1]) != np.array(wanted)):
            return None
        value = str(node.input[0])
    return node


def _turned(view: View, value: str) -> Any:
    """The Transpose that puts the length first, before roundings, if nothing else reads what it makes; else `None`."""
    while view.alone(value):
        node = view.makers.get(value)
        if node is None or not view.rounds(node):
            return view.maker(value, "Transpose", LENGTH_FIRST)
        value = str(node.input[0])
    return None


def _can_be_cut(view: View, gemm: Any) -> bool:
    """Whether weight and bias can be cut along their first axis into thirds."""
    rows = view.dims(gemm.input[1])[0]
    if not attribute(gemm, "transB", 0) or attribute(gemm, "transA", 0):
        return False
    for name in gemm.input[1:]:
        maker = view.makers.get(name)
        if view.dims(name)[:1] != [rows]:
            return False
        if maker is None:
            fits = name in view.tensors
        elif maker.op_type == "DequantizeLinear":
            scalar = all(view.size(one) == 1 for one in maker.input[1:])
            fits = maker.input[0] in view.tensors and (scalar or attribute(maker, "axis", 1) == 0)
        else:
            cast = view.maker(maker.input[0], "Cast") if maker.op_type == "Mul" else None
            fits = cast is not None and {cast.input[0], maker.input[1]} <= view.tensors.keys()
        if not fits:
            return False
    return True


def _thirds(view: View, frame: Frame, core: Core) -> tuple[list[str], list[Any]]:
    """Three products in place of one; their results are `[B, L, H * D]`."""
    nodes: list[Any] = []
    given = [_cut(view, name, nodes) for name in frame.gemm.input[1:]]
    size = view.add(f"{core.name}_rows", [-1, frame.length, core.heads * core.width])
    names = [f"{core.name}_{role}" for role in "qkv"]
    for index, name in enumerate(names):
        inputs = [frame.gemm.input[0], *(parts[index] for parts in given)]
        product = helper.make_node("Gemm", inputs, [f"{name}_rows"], name=frame.gemm.name + "'" * index)
        product.attribute.extend(frame.gemm.attribute)
        nodes += [product, helper.make_node("Reshape", [f"{name}_rows", size], [name])]
    return names, nodes


def _cut(view: View, name: str, nodes: list[Any]) -> list[str]:
    """Cut a weight or bias, float or dequantized, into thirds; the runtime does so once, when it loads the file."""
    maker = view.maker(name, "DequantizeLinear")
    if maker is None:
        return _split(view, name, nodes)
    parts = [[one] * 3 if view.size(one) == 1 else _split(view, one, nodes) for one in maker.input]
    made = [f"{name}_{index}" for index in range(3)]
    for index, output in enumerate(made if made[0] not in view.makers else ()):
        view.makers[output] = maker
        nodes.append(helper.make_node("DequantizeLinear", [part[index] for part in parts], [output]))
        nodes[-1].attribute.extend(maker.attribute)
    return made


def _split(view: View, name: str, nodes: list[Any]) -> list[str]:
    parts = [f"{name}_third_{index}" for index in range(3)]
    if parts[0] not in view.makers:
        nodes.append(helper.make_node("Split", [name], parts, axis=0, num_outputs=3))
        view.makers |= dict.fromkeys(parts, nodes[-1])
    return parts
