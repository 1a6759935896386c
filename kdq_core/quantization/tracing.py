"""Traces a model with `torch.export`; an LSTM or GRU becomes one operator, an embedding bag a look-up and a reduction.

By default, torch.export finds the shapes of a recurrent layer by running its steps: 20 seconds for 64 steps. An
embedding bag would be written as a loop over its bags.
"""

# ruff: noqa: ARG001  (torch reads an operator's signature, its fake's too)
from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import transformer
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
    """Replaces calls of torch's recurrent operators by the ones above, except for packed sequences; also bags."""

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
        if func is F.embedding_bag:
            return reduced_bags(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def reduced_bags(
    tokens: Tensor, weight: Tensor, offsets: Tensor | None = None, max_norm: float | None = None, norm_type: float = 2,
    scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
    per_sample_weights: Tensor | None = None, include_last_offset: bool = False, padding_idx: int | None = None,
) -> Tensor:  # fmt: skip
    """Compute `F.embedding_bag` of bags of one size: tokens `[B, L]` give `[B, D]`; an empty bag gives zeros.

    Raises:
        ValueError: the bags are cut by offsets, or the table is renormalised.
    """
    if tokens.dim() != 2 or max_norm is not None:
        raise ValueError(
            "an embedding bag can be traced with tokens [B, L] and without 'max_norm'; pad bags to one size"
        )
    rows = F.embedding(tokens, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if padding_idx is None:
        return rows.amax(1) if mode == "max" else rows.sum(1) if mode == "sum" else rows.mean(1)
    kept = (tokens != padding_idx % len(weight)).unsqueeze(-1)
    count = kept.sum(1)
    if mode == "max":
        return torch.where(count > 0, rows.masked_fill(~kept, -torch.inf).amax(1), 0.0)
    total = (rows * kept).sum(1)
    return total if mode == "sum" else total / count.clamp(min=1)


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
    rest = inspect.Parameter.VAR_POSITIONAL
    named = kinds.index(rest) if rest in kinds else len(example)
    asked = (*shapes[:named], shapes[named:]) if named < len(shapes) else shapes
    with _Whole(), _masks_as_given(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own internals
        program = torch.export.export(model, example, dynamic_shapes=asked, strict=False)
    for node in program.graph.nodes:  # the strides of what attention gives differ from those that were traced
        if node.target == torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    return program


@contextlib.contextmanager
def _masks_as_given() -> Iterator[None]:
    """Keep PyTorch's transformer from looking at the values of a mask for whether it is causal: a graph has none.

    It only chooses a faster kernel by that; with the mask itself the results are the same.
    """
    found = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = found
