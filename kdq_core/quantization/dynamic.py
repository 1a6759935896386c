"""Simulates, in a prepared model, ranges that the runtime measures for each batch."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from kdq_core.quantization.ops import measured_grid

LINEAR = torch.ops.aten.linear.default


class RoundDynamically(nn.Module):
    """Rounds a tensor to 256 integers between its own least and greatest value. It has no state.

    The straight-through gradient passes everywhere, because nothing is clipped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.quantizing = True

    def forward(self, x: Tensor) -> Tensor:
        """Round `x` if `quantizing`; shape and type stay."""
        if not self.quantizing:
            return x
        wide = x.detach().to(torch.float32)
        scale, zero = measured_grid(wide)
        rounded = wide.div(scale).round_().add_(zero).clamp_(0, 255).sub_(zero).mul_(scale)
        return x + (rounded.to(x.dtype) - x.detach())


def insert_dynamic_rounding(prepared: fx.GraphModule, weights: set[fx.Node]) -> None:
    """Insert rounding before every linear layer whose weight is in `weights`; layers that share an input share it."""
    holder = nn.ModuleDict()
    prepared.add_module("dynamic_rounding", holder)
    made: dict[fx.Node, fx.Node] = {}
    for node in list(prepared.graph.nodes):
        if node.target != LINEAR or node.args[1] not in weights:
            continue
        x = node.args[0]
        if x not in made:
            key = f"{x.name}_input"
            holder[key] = RoundDynamically()
            with prepared.graph.inserting_after(x):
                made[x] = prepared.graph.call_module(f"dynamic_rounding.{key}", (x,))
            made[x].meta = dict(x.meta)
        node.update_arg(0, made[x])
