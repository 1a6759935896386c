"""Attention of ONNX graphs as one operator on `[B, L, H * D]`, with the batch first throughout.

PyTorch's `nn.MultiheadAttention` puts the length first, computes query, key and value in one product, and cuts and
transposes it; ONNX Runtime would copy the whole batch about eight times a layer. KDQ writes three products, whose
weights are parts of one constant, and ONNX's operator `Attention`. It computes in the same order, so no value changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from kdq_targets.onnx_parts import drop_unread

LENGTH_FIRST, HEADS_FIRST = (1, 0, 2), (0, 2, 1, 3)


@dataclass(frozen=True)
class Core:
    """The products around a softmax: `q`, `k`, `v` are `[B, H, L, D]`; `last` makes the result `[B, H, L, D]`.

    `turned` is `k` as `[B, H, D, L]`; `scaled` are the nodes that multiply it and `q` by the root of `scale`.
    """

    q: str
    k: str
    v: str
    turned: str
    scaled: tuple[Any, Any]
    scale: float
    last: Any


def fuse_attention(graph: Any, *, operator: bool = True) -> None:
    """Write each attention without a mask, whose heads come from linear layers, with the batch first, in place.

    Args:
        graph: the ONNX graph.
        operator: whether to write `Attention`, or else its products, for runtimes that would compute it in another
            order.
    """
    rewriter = _Attentions(graph, operator)
    for node in list(graph.node):
        if node.op_type == "Softmax":
            rewriter.rewrite(node)
    rewriter.finish()


class _Attentions:
    def __init__(self, graph: Any, operator: bool) -> None:
        self.graph, self.operator = graph, operator
        self.makers = {output: node for node in graph.node for output in node.output}
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[Any]] = {value.name: [None] for value in graph.output}
        for node in graph.node:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)
        self.order = {id(node): index for index, node in enumerate(graph.node)}
        self.before: dict[int, list[Any]] = {}
        self.instead: dict[int, list[Any]] = {}

    def rewrite(self, softmax: Any) -> None:
        core = self._core(softmax)
        if core is None:
            return
        heads = [self._separate(value) for value in (core.q, core.k, core.v)]
        if all(heads):
            if self.operator:
                self._write_separate(core, heads)
            return
        packed = [self._packed(value) for value in (core.q, core.k, core.v)]
        if (
            all(packed)
            and [part[0] for part in packed if part] == [0, 1, 2]
            and len({p[1].output[0] for p in packed if p}) == 1
        ):
            self._write_packed(core, packed[0])

    def finish(self) -> None:
        """Put the new nodes in their places."""
        if not self.instead:
            return
        nodes = [
            new
            for node in self.graph.node
            for new in (*self.before.get(id(node), ()), *self.instead.get(id(node), (node,)))
        ]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        drop_unread(self.graph)

    def _core(self, softmax: Any) -> Core | None:
        first, last = self._maker(softmax.input[0], "MatMul"), self._only_reader(softmax.output[0], "MatMul")
        if first is None or last is None or last.input[0] != softmax.output[0] or _attribute(softmax, "axis", -1) != -1:
            return None
        scaled = [self._maker(value, "Mul") for value in first.input]
        found = [None if one is None else self._constant(one.input[1]) for one in scaled]
        factors = [factor.reshape(()) for factor in found if factor is not None and factor.size == 1]
        if len(factors) < 2:
            return None
        turned = str(scaled[1].input[0])
        key = self._turned(turned)
        scale = float(np.float32(factors[0] * factors[1]))
        query, value = str(scaled[0].input[0]), str(last.input[1])
        return None if key is None else Core(query, key, value, turned, tuple(scaled), scale, last)

    def _turned(self, value: str) -> str | None:
        """The name of `[B, H, L, D]` whose last two axes are exchanged in `value`."""
        node = self.makers.get(value)
        if node is not None and node.op_type == "Transpose":
            return str(node.input[0]) if _perm(node) == (0, 1, 3, 2) else None
        flat = self._maker(value, "Reshape")
        turned = None if flat is None else self._maker(flat.input[0], "Transpose", (0, 2, 1))
        rows = None if turned is None else self._maker(turned.input[0], "Reshape")
        return None if rows is None else str(rows.input[0])

    def _separate(self, value: str) -> tuple[Any, list[int]] | None:
        """The Reshape to `[B, L, H, D]` whose result `value` is, with the heads first; and its shape."""
        turned = self._maker(value, "Transpose", HEADS_FIRST)
        cut = None if turned is None else self._maker(turned.input[0], "Reshape")
        shape = None if cut is None else self._shape(cut)
        return (cut, shape) if shape is not None and len(shape) == 4 and min(shape[2:]) > 0 else None

    def _packed(self, value: str) -> tuple[int, Any, list[int]] | None:
        """Which third of a product `value` is, the Gemm that makes it, and its shape `[-1, H, L, D]`."""
        index, shapes = -1, []
        node = self.makers.get(value)
        for depth, (kind, perm) in enumerate((
            ("Reshape", None), ("Transpose", LENGTH_FIRST), ("Reshape", None), ("Gather", None), ("Squeeze", None),
            ("Transpose", (3, 1, 2, 0, 4)), ("Unsqueeze", None), ("Reshape", None),
        )):  # fmt: skip
            if node is None or node.op_type != kind or (perm is not None and _perm(node) != perm):
                return None
            if len(self.readers[node.output[0]]) != {"Squeeze": 3}.get(kind, 1) and depth:
                return None
            if kind == "Reshape":
                shapes.append(self._shape(node) or [])
            if kind == "Gather":
                which = self._constant(node.input[1])
                index = -1 if which is None or which.ndim or _attribute(node, "axis", 0) else int(which)
            node = self.makers.get(node.input[0])
        heads, flat, cut = shapes
        if node is None or node.op_type != "Gemm" or not self._alone(node.output[0]) or index < 0:
            return None
        fits = len(heads) == len(cut) == 4 and len(flat) == 3 and cut[0] == heads[2] == flat[0] and cut[2] == 3
        return (index, node, heads) if fits and cut[3] == heads[1] * heads[3] and min(heads[1:]) > 0 else None

    def _write_separate(self, core: Core, heads: Sequence[Any]) -> None:
        sizes = heads[2][1]
        back = self._behind(core.last.output[0], HEADS_FIRST, sizes[2] * sizes[3], 3)
        if back is None:
            return
        names, nodes = [], []
        for role, (cut, shape) in zip("qkv", heads, strict=True):
            names.append(f"{core.last.output[0]}_{role}")
            whole = self._add(f"{names[-1]}_shape", np.array([*shape[:2], shape[2] * shape[3]]))
            nodes.append(helper.make_node("Reshape", [cut.input[0], whole], [names[-1]]))
        self._replace(core, back, names, nodes, [shape[2] for _, shape in heads])

    def _write_packed(self, core: Core, found: Any) -> None:
        _, gemm, (_, heads, length, width) = found
        back = self._behind(core.last.output[0], (2, 0, 1, 3), heads * width, 2)
        rows = self._maker(gemm.input[0], "Reshape")
        turned, links = None, []
        value = "" if rows is None else str(rows.input[0])
        while value in self.makers and turned is None:
            node = self.makers[value]
            if node.op_type == "Transpose" and _perm(node) == LENGTH_FIRST:
                turned = node
            elif not self._elementwise(node):
                return
            links.append(node)
            value = str(node.input[0])
        out = self._gemm_behind(back)
        if turned is None or back is None or out is None or rows is None:
            return
        if not all(self._alone(node.output[0]) for node in (rows, *links)):
            return
        product, cut, end = out
        shape = self._shape(cut)
        if shape is None or len(shape) != 3 or shape[0] != length:
            return
        names, nodes = self._thirds(gemm, core, length, heads * width)
        if not names:
            return
        self._bypass(turned)
        self._replace(core, back, names, nodes, [heads, heads, heads])
        size = self._add(f"{end.output[0]}_shape", np.array([-1, length, shape[2]]))
        self.instead[id(cut)] = []
        self.instead[id(end)] = [helper.make_node("Reshape", [product.output[0], size], list(end.output))]

    def _thirds(self, gemm: Any, core: Core, length: int, width: int) -> tuple[list[str], list[Any]]:
        """Three products in place of one; their results are `[B, L, H * D]`."""
        nodes: list[Any] = []
        given = [self._cut(name, nodes) for name in gemm.input[1:]]
        if any(not parts for parts in given) or not _attribute(gemm, "transB", 0):
            return [], []
        size = self._add(f"{core.last.output[0]}_rows", np.array([-1, length, width]))
        names = [f"{core.last.output[0]}_{role}" for role in "qkv"]
        for index, name in enumerate(names):
            inputs = [gemm.input[0], *(parts[index] for parts in given)]
            product = helper.make_node("Gemm", inputs, [f"{name}_rows"], name=gemm.name + "'" * index)
            product.attribute.extend(gemm.attribute)
            nodes += [product, helper.make_node("Reshape", [f"{name}_rows", size], [name])]
        return names, nodes

    def _cut(self, name: str, nodes: list[Any]) -> list[str]:
        """Cut a weight or bias, float or dequantized, into three along its first axis; the runtime does so at once."""
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            if _attribute(maker, "axis", 1) != 0 and self._size(maker.input[1]) != 1:
                return []
            parts = [[one] * 3 if self._size(one) == 1 else self._split(one, nodes) for one in maker.input]
            made = [f"{name}_{index}" for index in range(3)]
            for index, output in enumerate(made):
                nodes.append(helper.make_node("DequantizeLinear", [part[index] for part in parts], [output]))
                nodes[-1].attribute.extend(maker.attribute)
            return made
        constant = name in self.tensors or (maker is not None and maker.op_type == "Mul")
        return self._split(name, nodes) if constant else []

    def _split(self, name: str, nodes: list[Any]) -> list[str]:
        parts = [f"{name}_third_{index}" for index in range(3)]
        if not any(part in self.makers for part in parts):
            nodes.append(helper.make_node("Split", [name], parts, axis=0, num_outputs=3))
            self.makers |= dict.fromkeys(parts, nodes[-1])
        return parts

    def _size(self, name: str) -> int:
        return int(np.prod(self.tensors[name].dims)) if name in self.tensors else 0

    def _replace(self, core: Core, back: Any, names: list[str], nodes: list[Any], heads: list[int]) -> None:
        if not self.operator:
            self._write_products(core, back, names, nodes, heads[0])
            return
        made = helper.make_node(
            "Attention", names, [core.last.output[0]], name=core.last.name, q_num_heads=heads[0],
            kv_num_heads=heads[1], scale=core.scale,
        )  # fmt: skip
        self.instead[id(core.last)] = [*nodes, made]
        self._bypass(back)

    def _write_products(self, core: Core, back: Any, names: list[str], nodes: list[Any], heads: int) -> None:
        """Cut the heads from `[B, L, H * D]`, and let the products of old read them."""
        shape = self._add(f"{core.last.output[0]}_heads", np.array([0, 0, heads, -1]))
        for name, value, perm in zip(
            names, (core.q, core.turned, core.v), (HEADS_FIRST, (0, 2, 3, 1), HEADS_FIRST), strict=True
        ):
            nodes.append(helper.make_node("Reshape", [name, shape], [f"{name}_cut"]))
            nodes.append(helper.make_node("Transpose", [f"{name}_cut"], [f"{name}_heads"], perm=perm))
            for reader in self.readers[value]:
                reader.input[:] = [f"{name}_heads" if one == value else one for one in reader.input]
        self.before[min(map(id, core.scaled), key=self.order.__getitem__)] = nodes
        self.instead[id(back)] = [helper.make_node("Transpose", list(back.input), list(back.output), perm=HEADS_FIRST)]

    def _bypass(self, node: Any) -> None:
        """Let the readers of a node read its input."""
        for reader in self.readers[node.output[0]]:
            reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
        self.instead[id(node)] = []

    def _behind(self, value: str, perm: tuple[int, ...], width: int, rank: int) -> Any:
        """The Transpose behind `value` if a Reshape to `[..., width]` follows, with only roundings in between."""
        node = self._rounded(value)
        if node is None or node.op_type != "Transpose" or _perm(node) != perm:
            return None
        flat = self._rounded(node.output[0])
        shape = self._shape(flat) if flat is not None and flat.op_type == "Reshape" else None
        return node if shape and shape[-1] == width and len(shape) in (2, rank) else None

    def _rounded(self, value: str) -> Any:
        """The only reader of `value`, or of what its roundings give."""
        node = self._only_reader(value)
        while node is not None and self._elementwise(node):
            node = self._only_reader(node.output[0])
        return node

    def _gemm_behind(self, back: Any) -> tuple[Any, Any, Any] | None:
        """Behind a Transpose: the Gemm on rows, the Reshape of its result, and the Transpose to the batch first."""
        node = None if back is None else self._only_reader(back.output[0])
        while node is not None and (node.op_type == "Reshape" or self._elementwise(node)):
            node = self._only_reader(node.output[0])
        if node is None or node.op_type != "Gemm" or not self._alone(node.output[0]):
            return None
        cut = self._only_reader(node.output[0], "Reshape")
        end = None if cut is None else self._only_reader(cut.output[0], "Transpose")
        return None if cut is None or end is None or _perm(end) != LENGTH_FIRST else (node, cut, end)

    def _elementwise(self, node: Any) -> bool:
        """Whether a node only rounds, on one grid for all values."""
        return node.op_type == "Clip" or (
            node.op_type in ("QuantizeLinear", "DequantizeLinear") and self._size(node.input[1]) == 1
        )

    def _alone(self, value: str) -> bool:
        return len(self.readers.get(value, [])) == 1 and self.readers[value][0] is not None

    def _only_reader(self, value: str, kind: str | None = None) -> Any:
        readers = self.readers.get(value, [])
        return (
            readers[0] if len(readers) == 1 and readers[0] is not None and kind in (None, readers[0].op_type) else None
        )

    def _maker(self, value: str, kind: str, perm: tuple[int, ...] | None = None) -> Any:
        node = self.makers.get(value)
        return node if node is not None and node.op_type == kind and (perm is None or _perm(node) == perm) else None

    def _constant(self, name: str) -> Any:
        return numpy_helper.to_array(self.tensors[name]) if name in self.tensors else None

    def _shape(self, reshape: Any) -> list[int] | None:
        found = self._constant(reshape.input[1])
        return None if found is None else [int(size) for size in found]

    def _add(self, name: str, value: Any) -> str:
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def _perm(node: Any) -> tuple[int, ...]:
    return next((tuple(item.ints) for item in node.attribute if item.name == "perm"), ())
