"""Compares a prepared model with the converted one layer by layer, and finds the tensors that differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from kdq_core.grids.fake import FakeQuantize
from kdq_core.quantization.capture import module_path
from kdq_core.quantization.convert import DEQUANTIZE, QUANTIZE
from kdq_core.store.records import Departure


@torch.no_grad()
def departures_of_conversion(
    prepared: GraphModule, converted: GraphModule, inputs: tuple[Tensor, ...]
) -> tuple[Departure, ...]:
    """List the quantized activations that differ by half a step or more, in the order of the graph.

    Args:
        prepared: a prepared model in eval mode, with observers off.
        converted: the model that `convert` made from it.
        inputs: one batch.
    """
    simulated: dict[str, Tensor] = {}
    found: list[Departure] = []

    class Prepared(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
            if isinstance(module, FakeQuantize) and module.place.role == "activation":
                simulated[module.place.node] = value
            return value

    class Converted(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            q = n.args[0] if n.target is DEQUANTIZE else None
            if isinstance(q, Node) and q.target is QUANTIZE and str(q.args[5]) in simulated:
                scale = self.env[n.args[1]]  # type: ignore[index]
                steps = ((value - simulated[str(q.args[5])]) / scale).abs().round()
                if steps.any():
                    share = float(steps.ne(0).double().mean())
                    found.append(_departure(q, share, int(steps.max())))
            return value

    Prepared(prepared).run(*inputs)
    Converted(converted).run(*inputs)
    return tuple(found)


def _departure(q: Node, share: float, most: int) -> Departure:
    maker = q.args[0]
    assert isinstance(maker, Node)
    label = str(q.args[5])
    return Departure(path=module_path(maker) or label, operator=label, share=share, most=most)
