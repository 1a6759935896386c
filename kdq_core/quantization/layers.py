"""Convolutions and linear layers of a captured graph: their parameters, and the batch norm behind them."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import fx, nn

from kdq_core.quantization.capture import BatchNorm
from kdq_core.quantization.recurrent import Recurrent

aten = torch.ops.aten
CONVS = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
}
LAYERS = CONVS | {aten.linear.default}
EMBEDDING = aten.embedding.default


def only_reader(node: fx.Node) -> fx.Node | None:
    """Give the node that reads `node`; `None` if there are none or several."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 else None


def own_norm(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Find the batch norm that can be folded into the conv or linear `node`, as the node that calls it.

    It must be the only reader of `node`, and normalise the layer's output channels. Batch norm normalises axis 1. There
    a linear layer has its channels only if it gives `[B, C]`; behind `[B, L, C]`, batch norm normalises L. The output
    has its channels in axis 1 if it has as many axes as the weight.
    """
    after = only_reader(node) if node.target in LAYERS else None
    if after is None or after.op != "call_module" or not isinstance(graph.get_submodule(str(after.target)), BatchNorm):
        return None
    weight = cast(fx.Node, node.args[1])
    return after if node.meta["val"].dim() == weight.meta["val"].dim() else None


def norm_behind(graph: fx.GraphModule, node: fx.Node) -> BatchNorm | None:
    """Give the module of the batch norm that `own_norm` finds."""
    after = own_norm(graph, node)
    return None if after is None else cast(BatchNorm, graph.get_submodule(str(after.target)))


def parameter(graph: fx.GraphModule, node: fx.Node, index: int) -> nn.Parameter | None:
    """Give the parameter at argument `index` of `node`, also behind a fake-quantizer; `None` if there is none."""
    value: Any = node.args[index] if len(node.args) > index else None
    if isinstance(value, fx.Node) and value.op == "call_module":
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    return cast(nn.Parameter, operator.attrgetter(str(value.target))(graph))


def weight_readers(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """List the layers whose weight is `node`; other operators may read it too."""
    return [user for user in node.users if _is_weight(graph, user, node)]


def _is_weight(graph: fx.GraphModule, user: fx.Node, node: fx.Node) -> bool:
    if user.op == "call_module":
        return isinstance(graph.get_submodule(str(user.target)), Recurrent)
    if user.target in LAYERS:
        return user.args[1] is node and user.args[0] is not node
    return user.target is EMBEDDING and user.args[0] is node


def groups_of(node: fx.Node) -> int:
    """Give the number of groups of a convolution; 1 for a linear layer."""
    return int(cast(int, node.args[6])) if node.target in CONVS and len(node.args) > 6 else 1
