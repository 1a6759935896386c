"""Which ATen operators have an int8 kernel in ONNX Runtime, which only move data, and why the others are float."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.fx import Node

from kdq_core.api import is_constant
from kdq_targets.onnx_pools import AXES, why_float_pool
from kdq_targets.onnx_products import constant_factor

aten = torch.ops.aten

CONVS = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
RNNS = {aten.rnn_tanh.input, aten.rnn_relu.input}
LINEARS = {aten.linear.default}
EMBEDDINGS = {aten.embedding.default}
PAIRS = {aten.add.Tensor: "add", aten.mul.Tensor: "mul"}
JOINS = {aten.cat.default, aten.stack.default}
POOLS = {
    *AXES, aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
    aten.mean.dim,
}  # fmt: skip
LOOKUPS = {aten.relu.default: "relu", aten.leaky_relu.default: "leaky_relu", aten.sigmoid.default: "sigmoid"}
"""Functions of one tensor for which the runtime has a table of 256 entries."""
FOLDED = {aten.relu.default, aten.relu6.default, aten.hardtanh.default}
"""Activations that a following quantizer performs by its own clipping."""
SWALLOWED = FOLDED | {
    aten.leaky_relu.default, aten.sigmoid.default, aten.tanh.default, aten.hardsigmoid.default, aten.elu.default,
}  # fmt: skip
"""Activations that the runtime would merge into a float linear layer."""
SPLITS = {
    aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.unbind.int,
}  # fmt: skip
MOVERS = {
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.flatten.using_ints,
    aten.view.default, aten.reshape.default,
    aten.permute.default, aten.transpose.int, aten.t.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.squeeze.default, aten.unflatten.int, aten.slice.Tensor, aten.select.int,
    aten.expand.default, aten.repeat.default, aten.pixel_shuffle.default, aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
}  # fmt: skip
"""Operators that move data and leave it on its grid; the runtime moves the integers."""
COPIES = {
    aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default,
}  # fmt: skip
MAKERS = {"zeros", "ones", "full", "arange", "empty", "zeros_like", "ones_like", "full_like", "to", "_to_copy", "where"}
"""Operators that compute nothing of the model's own."""
WEIGHTED = ("conv", "linear", "embedding", "lstm", "gru")
FOLLOWERS = ("add", "mul", "concat", "pool", *LOOKUPS.values())
"""Kinds that run in int8 between int8 neighbours; between float neighbours they stay float at no loss."""
REASONS = {
    "attention": "products between activations and softmax gain nothing in int8",
    "matmul": "products between activations gain nothing in int8",
    "softmax": "softmax between float products stays float",
    "layer_norm": "ONNX Runtime has no int8 kernel for layer_norm, and it needs the float range",
    "batch_norm": "no conv or linear directly in front of it can take it in",
    "rnn": "ONNX Runtime has no int8 kernel for plain recurrent layers",
    "conv_transpose": "KDQ has no int8 form of transposed convolutions",
}
SAME_AS = dict.fromkeys(("bmm", "baddbmm", "einsum", "mm", "addmm"), "matmul")


KINDS: dict[str, set[Any]] = {
    "conv": CONVS, "linear": LINEARS, "embedding": EMBEDDINGS, "concat": JOINS, "conv_transpose": TRANSPOSED,
    "rnn": RNNS,
}  # fmt: skip


def moves_data(node: Node) -> bool:
    """Say whether `node` leaves its input on its grid: it moves data, or pads with zeros, which every grid has."""
    if node.target != aten.pad.default:
        return node.target in MOVERS
    mode = node.args[2] if len(node.args) > 2 else "constant"
    return mode == "constant" and not (node.args[3] if len(node.args) > 3 else 0)


def is_float(node: Node) -> bool:
    """Say whether `node` is a float tensor with a batch axis."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.dim() > 0


def weight_of(node: Node) -> Node | None:
    """Return the weight of a layer or embedding, or `None` if it depends on the model's inputs."""
    weight = node.args[0 if node.target in EMBEDDINGS else 1]
    return weight if isinstance(weight, Node) and is_constant(weight) else None


def operator_kind(node: Node) -> str | None:
    """Return the type of an ATen call: of `WEIGHTED`, of `FOLLOWERS`, or its own name if it runs in float.

    Calls that compute nothing give `None`: shapes, constants and what is computed from them alone, movers of data.
    """
    target = cast(Any, node.target)
    if node.op != "call_function" or target in SPLITS | COPIES or moves_data(node) or not hasattr(target, "_opname"):
        return None
    if is_constant(node):
        return None
    for kind, targets in KINDS.items():
        if target in targets:
            return kind
    if target in POOLS:
        return "pool" if _is_pool(node) else "mean"
    name = PAIRS.get(target) or LOOKUPS.get(target) or str(target._opname)
    if not is_float(node) or name in MAKERS:
        return None
    return SAME_AS.get(name, name)


def _is_pool(node: Node) -> bool:
    """Whether the call pools: a mean does so only over all positions of `[B, C, ...]`."""
    if node.target != aten.mean.dim:
        return True
    rank = cast(Node, node.args[0]).meta["val"].dim()
    return rank > 2 and sorted(d % rank for d in cast(Any, node.args[1])) == list(range(2, rank))


def inputs_of(node: Node, kind: str) -> list[Node]:
    """Return the activations that an operator computes with."""
    given: Any = node.args[0] if kind == "concat" else node.args[: 2 if kind in PAIRS.values() else 1]
    return [arg for arg in given if isinstance(arg, Node)]


def why_float(node: Node, kind: str) -> str:
    """Say why an operator stays float whatever its neighbours; empty if it may be int8."""
    if kind in ("conv", "linear", "embedding"):
        return "" if weight_of(node) is not None else "its weight depends on the model's inputs"
    if kind in PAIRS.values():
        operands = [arg for arg in node.args[:2] if isinstance(arg, Node)]
        if len(operands) < 2 or not all(is_float(arg) for arg in operands):
            return "one operand is a number or a parameter"
        return "one operand is a number or a parameter" if any(a.op == "get_attr" for a in operands) else ""
    if node.target in AXES:
        shape = cast(Node, node.args[0]).meta["val"].shape
        return why_float_pool(shape, AXES[node.target], node.args[1:])
    if kind in FOLLOWERS or kind in WEIGHTED:
        return ""
    if kind == "matmul" and constant_factor(node) is not None:
        return "KDQ has no int8 form of this product with a constant"
    if kind == "mean":
        return "only a mean over all positions of [B, C, ...] has an int8 kernel"
    return REASONS.get(kind, f"ONNX Runtime has no int8 kernel for {kind}")
