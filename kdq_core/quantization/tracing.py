"""Traces a model with `torch.export`; an LSTM or GRU becomes one operator, an embedding bag a look-up and a reduction.

By default, torch.export finds the shapes of a recurrent layer by running its steps: 20 seconds for 64 steps. An
embedding bag would be written as a loop over its bags.
"""

# ruff: noqa: ARG001  (torch reads an operator's signature, its fake's too)
from __future__ import annotations

import contextlib
import inspect
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


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
        if func is F.scaled_dot_product_attention and args and args[0].dim() == 3:
            return one_head(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def one_head(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **named: Any
) -> Tensor:
    """Compute attention of `[B, L, E]` as that of one head: the exporter writes attention of `[B, H, L, E]` alone."""
    parts = [None if x is None else x.unsqueeze(1) if x.dim() > 2 else x for x in (query, key, value, attn_mask)]
    return F.scaled_dot_product_attention(*cast(Any, parts), *args, **named).squeeze(1)


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
    with _Whole(), _masks_as_given(), _without_graph(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own internals
        program = torch.export.export(model, example, dynamic_shapes=asked, strict=False)
    _own_strides(program.graph)
    return program


def _own_strides(graph: torch.fx.Graph) -> None:
    """Copy what a view reads if it comes from attention: the exporter's attention lays out its result differently."""
    views = (aten.view.default, aten.reshape.default)
    for node in [node for target in views for node in graph.find_nodes(op="call_function", target=target)]:
        moved = node.args[0]
        if moved.target == aten.transpose.int and moved.args[0].target == aten.scaled_dot_product_attention.default:
            with graph.inserting_before(node):
                copy = graph.call_function(aten.clone.default, (moved,), {"memory_format": torch.contiguous_format})
            copy.meta = dict(moved.meta)
            node.replace_input_with(moved, copy)


@contextlib.contextmanager
def _without_graph() -> Iterator[None]:
    """Drop what torch prints if it refuses a model: the whole graph that it has traced so far."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        yield
    sys.stderr.write(said.getvalue())


def _only_if_said(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    return bool(is_causal)


@contextlib.contextmanager
def _masks_as_given() -> Iterator[None]:
    """Keep PyTorch's transformer from looking at the values of a mask for whether it is causal: a graph has none.

    It only chooses a faster kernel by that; with the mask itself the results are the same.
    """
    found = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = _only_if_said
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = found
