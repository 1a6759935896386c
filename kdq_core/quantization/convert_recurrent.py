"""Converts recurrent layers of a prepared model to integer layers, or to float layers on int8 weights."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx

from kdq_core.quantization import ops  # noqa: F401  (registers kdq::dequantize)
from kdq_core.quantization.recurrent import Recurrent

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdq_core.grids.fake import FakeQuantize

aten = torch.ops.aten
DEQUANTIZE = torch.ops.kdq.dequantize.default
RECURRENT = torch.ops.kdq.recurrent.default


def convert_recurrent(model: fx.GraphModule, buffer: Callable[[str, Tensor], fx.Node]) -> None:
    """Convert every recurrent layer with quantized weights, in place.

    Args:
        model: a prepared model whose activations are already converted.
        buffer: registers a constant by name, and gives its node.
    """
    for node in list(model.graph.nodes):
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(module, Recurrent) or all(w.op == "get_attr" for w in module.weights(node)):
            continue
        if module.rounds_state:
            _Layers(model, node, module, buffer).write()
        else:
            _weights_only(model, node, module, buffer)


def _value(model: fx.GraphModule, node: Any) -> Tensor:
    return cast(Tensor, operator.attrgetter(node.target)(model)).detach()


def _integers(model: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    """Give the integers `[C, ...]` and the scale `[C]` of a fake-quantized weight."""
    module = cast("FakeQuantize", model.get_submodule(cast(str, node.target)))
    q = module.integers(_value(model, node.args[0]))
    return q.to(torch.int8), module.grid().scale.float().expand(len(q))


def _weights_only(model: fx.GraphModule, node: fx.Node, module: Recurrent, buffer: Any) -> None:
    """Let a layer keep its float arithmetic, on dequantized int8 weights."""
    calls = module.weights(node)
    weights = list(cast(Any, node.args[2]))
    for index, part in enumerate(weights):
        if part not in calls or part.op == "get_attr":
            continue
        q, scale = _integers(model, part)
        name = str(part.args[0].name)
        args = (buffer(f"{name}_q", q), buffer(f"{name}_scale", scale.clone()), None, 0, node.name)
        with model.graph.inserting_before(node):
            weights[index] = model.graph.call_function(DEQUANTIZE, args)
    node.args = (node.args[0], node.args[1], weights)


class _Layers:
    def __init__(self, model: fx.GraphModule, node: fx.Node, module: Recurrent, buffer: Any) -> None:
        self.model, self.graph, self.node, self.module, self.buffer = model, model.graph, node, module, buffer

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    def write(self) -> None:
        x, given = cast(fx.Node, self.node.args[0]), cast(list[fx.Node], self.node.args[1])
        scale, zero = cast(fx.Node, x.args[1]), cast(fx.Node, x.args[2])
        layers = self.module.by_layer(cast(Any, self.node.args[2]))
        directions = len(layers[0])
        ends: list[list[fx.Node]] = [[] for _ in given]
        with self.graph.inserting_before(self.node):
            y = self._call(aten.transpose.int, x, 0, 1) if self.module.batch_first else x
        for index, ways in enumerate(layers):
            x_scale = _value(self.model, scale)
            constants = self._constants(index, ways, x_scale)
            label = f"{self.node.name}.{index}" if index else self.node.name
            with self.graph.inserting_before(self.node):
                states = [
                    self._call(aten.slice.Tensor, state, 0, index * directions, (index + 1) * directions)
                    for state in given
                ]
                made = self._call(RECURRENT, y, scale, zero, states, *constants, self.module.kind, label)
                y = self._call(operator.getitem, made, 0)
                for position, ended in enumerate(ends):
                    ended.append(self._call(operator.getitem, made, position + 1))
            scale = self.buffer("state_scale", torch.tensor(2.0 / 255.0))
            zero = self.buffer("uint8_128", torch.tensor(128, dtype=torch.uint8))
        self._hand_over(y, ends)

    def _hand_over(self, y: fx.Node, ends: list[list[fx.Node]]) -> None:
        with self.graph.inserting_before(self.node):
            results = [self._call(aten.transpose.int, y, 0, 1) if self.module.batch_first else y]
            results += [self._call(aten.cat.default, ended, 0) if len(ended) > 1 else ended[0] for ended in ends]
        for user in list(self.node.users):
            user.replace_all_uses_with(results[cast(int, user.args[1])])
            self.graph.erase_node(user)
        self.graph.erase_node(self.node)

    def _constants(self, index: int, ways: list[Any], x_scale: Tensor) -> list[fx.Node]:
        """Register weights, scales and biases of all directions. A GRU's input bias is rounded as the runtime does."""
        parts: list[list[Tensor]] = [[], [], [], [], [], []]
        for w, r, b_x, b_h in ways:
            (w_q, w_scale), (r_q, r_scale) = _integers(self.model, w), _integers(self.model, r)
            zeros = torch.zeros_like(w_scale)
            b_x, b_h = (zeros if b is None else _value(self.model, b).float() for b in (b_x, b_h))
            if self.module.kind == "gru":
                b_x, b_h = _gru_biases(b_x, b_h, x_scale * w_scale)
            for part, value in zip(parts, (w_q, w_scale, r_q, r_scale, b_x, b_h), strict=True):
                part.append(value)
        names = ("w", "w_scale", "r", "r_scale", "b_x", "b_h")
        prefix = f"{self.node.name}_{index}"
        return [self.buffer(f"{prefix}_{name}", torch.stack(p)) for name, p in zip(names, parts, strict=True)]


def _gru_biases(b_x: Tensor, b_h: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Split a GRU's biases as the runtime adds them.

    The reset and update gates add both biases to the product with the state. The new gate adds its input bias to the
    product with the input, as an int32.
    """
    hidden = len(b_x) // 3
    split = 2 * hidden
    rounded = b_x[split:].double().div(step[split:].double()).round().clamp(-(2**30), 2**30) * step[split:].double()
    own = torch.cat([torch.zeros(split), rounded.float()])
    return own, torch.cat([b_x[:split] + b_h[:split], b_h[split:]])
