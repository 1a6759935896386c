"""Attention of ONNX graphs as one operator on `[B, L, H * D]`, with the batch first throughout.

ONNX Runtime would transpose query, key, value and result in every call. ONNX's operator `Attention` reads them as they
are, and the runtime computes in the same order, so no value changes. KDQ rewrites `scaled_dot_product_attention`
without a mask on fixed lengths, where nothing else reads its parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper

from kdq_targets.onnx_view import View, attribute

HEADS_FIRST = (0, 2, 1, 3)
ENDS = (-(2**63), 2**63 - 1)


@dataclass(frozen=True)
class Core:
    """The products around a softmax: `q`, `k`, `v` are `[B, H, L, D]`; `last` makes the result `[B, H, L, D]`.

    `turned` is `k` as `[B, H, D, L]`; `scaled` are the nodes that multiply `q` and it by the root of `scale`.
    """

    q: str
    k: str
    v: str
    turned: str
    scaled: tuple[Any, Any]
    scale: float
    last: Any
    heads: int
    width: int

    @property
    def name(self) -> str:
        """The name of the result."""
        return str(self.last.output[0])


def find_cores(view: View) -> list[Core]:
    """The attentions of a graph whose parts nothing else reads."""
    found = [_core(view, node) for node in view.graph.node if node.op_type == "Softmax"]
    return [core for core in found if core is not None]


def _core(view: View, softmax: Any) -> Core | None:
    """The attention around a softmax. Heads of width 1 are left out: the runtime would add in another order."""
    first, last = view.maker(softmax.input[0], "MatMul"), view.next(softmax.output[0], "MatMul")
    if first is None or last is None or attribute(softmax, "axis", -1) != -1:
        return None
    if not all(view.alone(value) for value in (first.output[0], *first.input)):
        return None
    scaled = [view.maker(value, "Mul") for value in first.input]
    factors: list[Any] = [None if one is None else view.constant(one.input[1]) for one in scaled]
    if any(factor is None or factor.size != 1 or factor.dtype != np.float32 for factor in factors):
        return None
    query, turned, value = str(scaled[0].input[0]), str(scaled[1].input[0]), str(last.input[1])
    key = _turned(view, turned)
    shapes = [view.dims(name) for name in (query, key, value)]
    if any(len(shape) != 4 or None in shape for shape in shapes):
        return None
    q, k, v = shapes
    same = q[:2] == k[:2] == v[:2] and k[2:] == v[2:] and q[3] == k[3]
    if not same or q[3] == 1 or not all(isinstance(size, int) for size in (*q[1:], k[2])):
        return None
    scale = float(factors[0].reshape(()) * factors[1].reshape(()))
    return Core(query, key, value, turned, (scaled[0], scaled[1]), scale, last, q[1], q[3])


def _turned(view: View, value: str) -> str:
    """The name of `[B, H, L, D]` whose last two axes are exchanged in `value`, as torch writes it; else ''."""
    back = view.maker(value, "Reshape")
    turned = None if back is None else view.maker(back.input[0], "Transpose", (0, 2, 1))
    rows = None if turned is None else view.maker(turned.input[0], "Reshape")
    if (
        back is None
        or turned is None
        or rows is None
        or not all(view.alone(name) for name in (value, back.input[0], turned.input[0]))
    ):
        return ""
    key, (least, most) = str(rows.input[0]), ENDS
    flat, whole = _sizes(view, rows.input[1], key), _sizes(view, back.input[1], key)
    fits = flat == [-1, (-2, -1), (-1, most)] and whole == [(least, -2), (-1, most), (-2, -1)]
    readers = all(one is rows or (one is not None and one.op_type == "Shape") for one in view.readers[key])
    return key if fits and readers else ""


def _sizes(view: View, name: str, value: str) -> list[Any]:
    """What a computed shape consists of: numbers, and from and to which axis the shape of `value` is cut out."""
    found: list[Any] = []
    concat = view.maker(name, "Concat")
    for part in () if concat is None else concat.input:
        cut = view.maker(part, "Slice")
        whole = None if cut is None else view.maker(cut.input[0], "Shape")
        ends = [view.constant(one) for one in (part, *(cut.input[1:3] if cut is not None else ()))]
        if ends[0] is not None:
            found.append(int(ends[0].reshape(-1)[0]))
        elif whole is None or whole.input[0] != value or any(end is None or end.size != 1 for end in ends[1:]):
            return []
        else:
            found.append((int(ends[1].reshape(())), int(ends[2].reshape(()))))
    return found


def write_separate(view: View, core: Core) -> bool:
    """Write an attention whose heads are cut from three tensors `[B, L, H * D]`."""
    back = view.next_rounded(core.name, "Transpose", HEADS_FIRST)
    flat = None if back is None else view.next_rounded(back.output[0], "Reshape")
    shape = [] if flat is None else view.shape(flat)
    if len(shape) not in (2, 3) or shape[-1] != core.heads * core.width:
        return False
    cuts = []
    for value in (core.q, core.k, core.v):
        turned = view.maker(value, "Transpose", HEADS_FIRST)
        cut = None if turned is None else view.maker(turned.input[0], "Reshape")
        if cut is None or len(view.shape(cut)) != 4:
            return False
        cuts.append(cut)
    nodes, names = [], [f"{core.name}_{role}" for role in "qkv"]
    for cut, name in zip(cuts, names, strict=True):
        whole = view.add(f"{name}_shape", [*view.shape(cut)[:2], core.heads * core.width])
        nodes.append(helper.make_node("Reshape", [cut.input[0], whole], [name]))
    write_operator(view, core, names, nodes)
    view.bypass(back)
    return True


def write_operator(view: View, core: Core, names: list[str], nodes: list[Any]) -> None:
    """Write `Attention` on three values `[B, L, H * D]`, behind the nodes that make them."""
    made = helper.make_node(
        "Attention", names, [core.name], name=core.last.name, q_num_heads=core.heads, kv_num_heads=core.heads,
        scale=core.scale,
    )  # fmt: skip
    view.instead[id(core.last)] = [*nodes, made]
