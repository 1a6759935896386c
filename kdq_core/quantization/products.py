"""Rewrites products of an activation with a constant matrix as linear layers, which targets run in int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from kdq_core.quantization.constants import is_constant

aten = torch.ops.aten
LINEAR = aten.linear.default
PRODUCTS = {aten.matmul.default, aten.mm.default}


def products_as_layers(graph: fx.Graph) -> None:
    """Rewrite `x @ w`, `x @ w + b` and `addmm(b, x, w)` with constants w `[I, O]` and b `[O]`, in place."""
    for node in list(graph.nodes):
        if node.target in PRODUCTS and _is_layer(*node.args):
            _rewrite(graph, node, node.args[0], node.args[1], 1, None, 1)
            _take_bias(graph, node)
        elif node.target == aten.addmm.default:
            bias, x, weight = node.args[:3]
            if _is_layer(x, weight) and _is_bias(bias, weight):
                alpha, beta = (node.kwargs.get(name, 1) for name in ("alpha", "beta"))
                _rewrite(graph, node, x, weight, alpha, bias, beta)


def _is_layer(x: Any, weight: Any) -> bool:
    """Whether `x` has rows, and `weight` is a constant matrix beside it."""
    return x.meta["val"].dim() > 1 and weight.meta["val"].dim() == 2 and is_constant(weight) and not is_constant(x)


def _is_bias(bias: Any, weight: Any) -> bool:
    width = weight.meta["val"].shape[1]
    return isinstance(bias, fx.Node) and is_constant(bias) and tuple(bias.meta["val"].shape) == (width,)


def _rewrite(graph: fx.Graph, node: fx.Node, x: Any, weight: Any, alpha: Any, bias: Any, beta: Any) -> None:
    with graph.inserting_before(node):
        turned = _new(graph, node, aten.t.default, weight, weight.meta["val"].t())
        if alpha != 1:
            turned = _new(graph, node, aten.mul.Tensor, turned, turned.meta["val"], alpha)
        if beta != 1:
            bias = _new(graph, node, aten.mul.Tensor, bias, bias.meta["val"], beta)
    node.target, node.kwargs = LINEAR, {}
    node.args = (x, turned) if bias is None else (x, turned, bias)


def _new(graph: fx.Graph, near: fx.Node, target: Any, x: fx.Node, value: Any, *more: Any) -> fx.Node:
    made = graph.call_function(target, (x, *more))
    made.meta = {**near.meta, "val": value}
    return made


def _take_bias(graph: fx.Graph, node: Any) -> None:
    """Let the layer add the constant that its only reader adds."""
    reader = next(iter(node.users), None)
    if reader is None or len(node.users) > 1 or reader.target != aten.add.Tensor or reader.kwargs:
        return
    bias = reader.args[1] if reader.args[0] is node else reader.args[0]
    if isinstance(bias, fx.Node) and bias < node and _is_bias(bias, node.args[1].all_input_nodes[0]):
        node.args = (*node.args, bias)
        reader.replace_all_uses_with(node)
        graph.erase_node(reader)
