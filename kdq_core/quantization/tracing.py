"""Traces a model with `torch.export`; an LSTM or GRU becomes one operator.

By default, torch.export finds the shapes of a recurrent layer by running its steps: 20 seconds for 64 steps.
"""

# ruff: noqa: ARG001  (torch reads an operator's signature, its fake's too)
from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@torch.library.custom_op("kdq::lstm", mutates_args=())
def traced_lstm(
    x: Tensor, states: list[Tensor], weights: list[Tensor], biases: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> list[Tensor]:  # fmt: skip
    """`torch.lstm` of a tensor: outputs, last hidden states, last cell states."""
    return list(torch.lstm(x, states, weights, biases, layers, dropout, train, bidirectional, batch_first))


@torch.library.custom_op("kdq::gru", mutates_args=())
def traced_gru(
    x: Tensor, state: Tensor, weights: list[Tensor], biases: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> list[Tensor]:  # fmt: skip
    """`torch.gru` of a tensor: outputs and last hidden states."""
    return list(torch.gru(x, state, weights, biases, layers, dropout, train, bidirectional, batch_first))


@traced_lstm.register_fake
def _(
    x: Tensor, states: list[Tensor], weights: list[Tensor], biases: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> list[Tensor]:  # fmt: skip
    width = states[0].shape[-1] * (1 + bidirectional)
    return [x.new_empty(*x.shape[:-1], width), *(torch.empty_like(state) for state in states)]


@traced_gru.register_fake
def _(
    x: Tensor, state: Tensor, weights: list[Tensor], biases: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> list[Tensor]:  # fmt: skip
    return [x.new_empty(*x.shape[:-1], state.shape[-1] * (1 + bidirectional)), torch.empty_like(state)]


class _Whole(TorchFunctionMode):
    """Replaces calls of torch's recurrent operators by the ones above, except for packed sequences."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if len(args) == 9 and not kwargs and isinstance(args[2], list | tuple):
            if func == torch.lstm:
                return tuple(traced_lstm(args[0], list(args[1]), list(args[2]), *args[3:]))
            if func == torch.gru:
                return tuple(traced_gru(args[0], args[1], list(args[2]), *args[3:]))
        return func(*args, **(kwargs or {}))


def export_program(model: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """Give the `torch.export.ExportedProgram` of a model (non-strict), with a free batch size.

    Args:
        model: traced in the mode it is in.
        example: inputs, each of shape `[B, ...]` with B >= 2; an `Example` may free further axes.

    Raises:
        Exception: whatever tracing raises; `why_untraceable` explains it.
    """
    batch = torch.export.Dim.DYNAMIC
    free = getattr(example, "free", ()) or ((),) * len(example)
    shapes = tuple(dict.fromkeys((0, *axes), batch) if x.dim() else None for x, axes in zip(example, free, strict=True))
    example = tuple(example)
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    varargs = inspect.Parameter.VAR_POSITIONAL in kinds
    with _Whole(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own internals
        return torch.export.export(model, example, dynamic_shapes=(shapes,) if varargs else shapes, strict=False)
