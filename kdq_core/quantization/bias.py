"""Rounds biases in training as the integer model will: to the step of the int32 accumulator, with batch norm folded.

The runtime adds an int32 bias with the step `input scale * weight scale`. At 2 bits that step is coarse. So the last
phase of training rounds the bias to it, and the other parameters learn to make up for the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from kdq_core.grids.fake import FakeQuantize
from kdq_core.quantization.capture import BatchNorm
from kdq_core.quantization.layers import norm_behind, own_norm, parameter

if TYPE_CHECKING:
    from kdq_core.grids.place import Place


class RoundBias(nn.Module):
    """Adds the rounding error of the bias of the operator before it, `[C]` along axis 1 (the last axis for a linear).

    It has no state of its own, and does nothing while `rounding` is off.
    """

    def __init__(
        self, x: FakeQuantize, weight: FakeQuantize, bias: nn.Parameter | None, norm: BatchNorm | None, last: bool
    ) -> None:
        super().__init__()
        self._parts = (x, weight, bias, norm)  # in a tuple, so that they are not registered a second time
        self.last = last
        self.rounding = False

    @torch.no_grad()
    def correction(self) -> Tensor:
        """Compute rounded bias minus bias, float32 `[C]`."""
        x, weight, bias, norm = self._parts
        scale = weight.scale_and_zero()[0].double()
        whole = torch.zeros_like(scale) if bias is None else bias.double()
        if norm is not None:
            factor = norm.factor()
            whole = norm.offset() + (whole - norm.running_mean.double()) * factor
            scale = scale * factor.abs()
        step = (x.scale_and_zero()[0].double() * scale).clamp(min=torch.finfo(torch.float32).tiny)
        return (whole.div(step).round().mul(step) - whole).float()

    def forward(self, y: Tensor) -> Tensor:
        """Round the bias that `y` contains, if `rounding`; gradients pass unchanged."""
        if not self.rounding:
            return y
        shape = [1] * y.dim()
        shape[-1 if self.last else 1] = -1
        return y + self.correction().to(y.dtype).reshape(shape)


def insert_bias_rounding(prepared: fx.GraphModule, places: Sequence[Place]) -> None:
    """Insert a `RoundBias` behind every operator with quantized weight and input, or behind its batch norm.

    A bias that is computed from parameters is not rounded before `convert`.
    """
    modules = dict(prepared.named_modules())
    calls = {
        node: modules[node.target]
        for node in prepared.graph.nodes
        if node.op == "call_module" and isinstance(modules[node.target], FakeQuantize)
    }
    weights = [place for place in places if place.role == "weight" and not place.weight_only]
    names = {place.name for place in weights if place.operator in ("conv", "linear")}
    holder = nn.ModuleDict()
    prepared.add_module("bias_rounding", holder)
    for call, weight in calls.items():
        if weight.place.name not in names:
            continue
        for op in list(call.users):
            x = _source(cast(fx.Node, op.args[0]), calls)
            bias, norm = parameter(prepared, op, 2), norm_behind(prepared, op)
            computed = bias is None and len(op.args) > 2 and op.args[2] is not None
            if x is None or computed or (bias is None and norm is None):
                continue
            key = f"{op.name}_bias"
            holder[key] = RoundBias(x, weight, bias, norm, last=weight.place.operator == "linear")
            _behind(prepared.graph, own_norm(prepared, op) or op, f"bias_rounding.{key}")


def _source(node: fx.Node, calls: dict[fx.Node, Any]) -> FakeQuantize | None:
    """Find the fake-quantizer whose grid the values of `node` lie on, through operators that only move data."""
    while node not in calls:
        inputs = [one for one in node.all_input_nodes if isinstance(one.meta.get("val"), Tensor)]  # not sizes
        if len(inputs) != 1:
            return None
        node = inputs[0]
    return cast(FakeQuantize, calls[node])


def _behind(graph: fx.Graph, node: fx.Node, target: str) -> None:
    users = list(node.users)
    with graph.inserting_after(node):
        call = graph.call_module(target, (node,))
    call.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, call)
