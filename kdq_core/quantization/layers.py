"""Convolutions and linear layers of a captured graph: what they hold, and what stands behind them."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import fx, nn

from kdq_core.quantization.capture import BatchNorm

aten = torch.ops.aten
CONVS = {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
LAYERS = CONVS | {aten.linear.default}


def only_reader(node: fx.Node) -> fx.Node | None:
    """The one node that reads `node`, if it is one."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 else None


def own_norm(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The call of a batch norm that alone reads the conv or linear `node`, over the layer's own output channels.

    Only that one can be folded into the layer. Batch norm is over axis 1, where a linear layer has its channels if it
    gives `[B, C]`: behind `[B, L, C]` it normalises L. Weights have as many axes as outputs with channels in axis 1.
    """
    after = only_reader(node) if node.target in LAYERS else None
    if after is None or after.op != "call_module" or not isinstance(graph.get_submodule(str(after.target)), BatchNorm):
        return None
    weight = cast(fx.Node, node.args[1])
    return after if node.meta["val"].dim() == weight.meta["val"].dim() else None


def norm_behind(graph: fx.GraphModule, node: fx.Node) -> BatchNorm | None:
    """The module that `own_norm` calls."""
    after = own_norm(graph, node)
    return None if after is None else cast(BatchNorm, graph.get_submodule(str(after.target)))


def parameter(graph: fx.GraphModule, node: fx.Node, index: int) -> nn.Parameter | None:
    """The parameter at argument `index`; looks through its fake-quantizer."""
    value: Any = node.args[index] if len(node.args) > index else None
    if isinstance(value, fx.Node) and value.op == "call_module":
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    return cast(nn.Parameter, operator.attrgetter(str(value.target))(graph))


def groups_of(node: fx.Node) -> int:
    """Groups of a convolution; 1 for a linear layer."""
    return int(cast(int, node.args[6])) if node.target in CONVS and len(node.args) > 6 else 1
