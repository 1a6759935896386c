"""Recurrent layers: a module that is fast in training and exact in eval mode, and the integer layers made from it.

In int8, the input and the hidden state of each step are rounded, the state to a fixed grid over [-1, 1]. Gates, cell
state and biases are float. Training runs PyTorch's own layer on rounded weights and inputs. Eval mode also rounds the
state, step by step, as the runtime does.
"""

# ruff: noqa: ARG001  (torch reads an operator's signature, its fake's too)
from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn

STATE_SCALE = 2.0 / 255.0
"""LSB of the hidden state, which lies in [-1, 1]; its zero point is 128 (127.5 rounded to even)."""
GATES = {"lstm": 4, "gru": 3}


class Recurrent(nn.Module):
    """`nn.LSTM` or `nn.GRU` with weights as arguments instead of its own, so that they can be fake-quantized first.

    Args:
        kind: `lstm` or `gru`.
        biases: whether each layer has its two biases.
        layers: number of layers.
        bidirectional: whether there are two directions, concatenated.
        batch_first: whether inputs are `[B, T, I]` instead of `[T, B, I]`.

    Attributes:
        rounds_state: whether eval mode rounds the hidden state; `prepare` sets it if input and weights are quantized.
    """

    def __init__(
        self, kind: Literal["lstm", "gru"], biases: bool, layers: int, bidirectional: bool, batch_first: bool
    ) -> None:
        super().__init__()
        self.kind, self.biases, self.layers = kind, biases, layers
        self.bidirectional, self.batch_first = bidirectional, batch_first
        self.rounds_state = False

    def forward(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """Give outputs `[B, T, D * H]` (or `[T, B, ...]`) and the last state or states, `[layers * D, B, H]`."""
        if self.rounds_state and not self.training:
            return self._exact(x, states, weights)
        flags = (self.biases, self.layers, 0.0, self.training, self.bidirectional, self.batch_first)
        if self.kind == "lstm":
            return cast(tuple[Tensor, ...], torch.lstm(x, states, weights, *flags))
        return cast(tuple[Tensor, ...], torch.gru(x, states[0], weights, *flags))

    def _exact(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        y = x.transpose(0, 1) if self.batch_first else x
        ends: list[list[Tensor]] = [[] for _ in states]
        for layer in range(self.layers):
            outputs = []
            y = y if layer == 0 else round_state(y)
            for direction, (w, r, b_x, b_h) in enumerate(self.by_layer(weights)[layer]):
                index = layer * (1 + self.bidirectional) + direction
                start = [state[index] for state in states]
                output, end = run_layer(self.kind, y, start, w, r, b_x, b_h, backward=direction == 1)
                outputs.append(output)
                for ended, state in zip(ends, end, strict=True):
                    ended.append(state)
            y = torch.cat(outputs, dim=2)
        y = y.transpose(0, 1) if self.batch_first else y
        return (y, *(torch.stack(ended) for ended in ends))

    def by_layer(self, weights: list[Any]) -> list[list[tuple[Any, Any, Any, Any]]]:
        """Group the weights by layer and direction: input and state weight, input and state bias (or `None`)."""
        directions = 1 + self.bidirectional
        size = len(weights) // (self.layers * directions)
        used = 4 if self.biases else 2
        groups = [tuple(weights[i : i + used]) + (None,) * (4 - used) for i in range(0, len(weights), size)]
        return [cast(Any, groups[i : i + directions]) for i in range(0, len(groups), directions)]

    def weights(self, node: fx.Node) -> list[fx.Node]:
        """List the weight matrices among the arguments of a call, without biases and projections."""
        return [part for layer in self.by_layer(cast(Any, node.args[2])) for way in layer for part in way[:2]]

    def why_float(self, node: fx.Node) -> str:
        """Explain why a call cannot run in int8; empty if it can."""
        if any(part.op != "get_attr" for part in self.weights(node)):
            return "its weights are computed, not parameters"
        count = len(cast(Any, node.args[2]))
        expected = self.layers * (1 + self.bidirectional) * (4 if self.biases else 2)
        return "" if count == expected else "its output is projected to another size"


def round_state(h: Tensor) -> Tensor:
    """Round values of [-1, 1] to the grid of the hidden state; any shape. Gradients pass unchanged."""
    q = h.detach().div(STATE_SCALE).round_().clamp_(-128, 127).mul_(STATE_SCALE)
    return h + (q - h.detach())


def run_layer(
    kind: str, x: Tensor, start: list[Tensor], w: Tensor, r: Tensor, b_x: Tensor | None, b_h: Tensor | None,
    *, backward: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Run one layer in one direction with a rounded state.

    Args:
        kind: `lstm` or `gru`.
        x: `[T, B, I]`.
        start: hidden state, and the cell state of an LSTM, each `[B, H]`.
        w: `[G * H, I]`, gates in PyTorch's order.
        r: `[G * H, H]`.
        b_x: `[G * H]`, added to the product with the input.
        b_h: `[G * H]`, added to the product with the state.
        backward: whether to run from the last step to the first.

    Returns:
        Outputs `[T, B, H]` and the last states.
    """
    from_input = torch.nn.functional.linear(x, w, b_x)
    states, outputs = list(start), []
    steps = range(len(x))
    for step in reversed(steps) if backward else steps:
        from_state = torch.nn.functional.linear(round_state(states[0]), r, b_h)
        states = (
            _lstm(from_input[step], from_state, states)
            if kind == "lstm"
            else _gru(from_input[step], from_state, states)
        )
        outputs.append(states[0])
    return torch.stack(outputs[::-1] if backward else outputs), states


def _lstm(x: Tensor, h: Tensor, states: list[Tensor]) -> list[Tensor]:
    i, f, g, o = (x + h).chunk(4, dim=1)
    c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def _gru(x: Tensor, h: Tensor, states: list[Tensor]) -> list[Tensor]:
    x_r, x_z, x_n = x.chunk(3, dim=1)
    h_r, h_z, h_n = h.chunk(3, dim=1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return [n + z * (states[0] - n)]


@torch.library.custom_op("kdq::recurrent", mutates_args=())
def recurrent(
    x: Tensor, scale: Tensor, zero_point: Tensor, states: list[Tensor], w: Tensor, w_scale: Tensor, r: Tensor,
    r_scale: Tensor, b_x: Tensor, b_h: Tensor, kind: str, label: str,
) -> list[Tensor]:  # fmt: skip
    """Run one int8 recurrent layer, in D directions (1 or 2).

    Args:
        x: `[T, B, I]`; rounded here to the grid of `scale` and `zero_point`.
        scale: float32 `[]`.
        zero_point: uint8 `[]`.
        states: initial hidden state, and cell state of an LSTM, `[D, B, H]` each.
        w: int8 `[D, G * H, I]`, gates in PyTorch's order.
        w_scale: `[D, G * H]`.
        r: int8 `[D, G * H, H]`.
        r_scale: `[D, G * H]`.
        b_x: float32 `[D, G * H]`.
        b_h: float32 `[D, G * H]`.
        kind: `lstm` or `gru`.
        label: name of the layer's node in the captured graph.

    Returns:
        Outputs `[T, B, D * H]` and the last states, `[D, B, H]` each.
    """
    zero = zero_point.to(torch.float32)
    x = ((x / scale).round_().clamp_(-zero, 255 - zero)) * scale
    outputs, ends = [], []
    for d in range(len(w)):
        wide = w[d].float() * w_scale[d][:, None], r[d].float() * r_scale[d][:, None]
        output, end = run_layer(kind, x, [s[d] for s in states], *wide, b_x[d], b_h[d], backward=d == 1)
        outputs.append(output)
        ends.append(end)
    return [torch.cat(outputs, 2), *(torch.stack([end[i] for end in ends]) for i in range(len(states)))]


@recurrent.register_fake
def _(
    x: Tensor, scale: Tensor, zero_point: Tensor, states: list[Tensor], w: Tensor, w_scale: Tensor, r: Tensor,
    r_scale: Tensor, b_x: Tensor, b_h: Tensor, kind: str, label: str,
) -> list[Tensor]:  # fmt: skip
    return [x.new_empty(x.shape[0], x.shape[1], r.shape[0] * r.shape[2]), *(torch.empty_like(s) for s in states)]
