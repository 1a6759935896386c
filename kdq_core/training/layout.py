"""Channels last: the memory layout in which 2-D convolutions train fastest."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def channels_last(model: nn.Module, inputs: tuple[Tensor, ...]) -> RemovableHandle | None:
    """Let `model` compute channels last, if it has 2-D convolutions: its weights now, its images at each call.

    A model that calls `view` on images wants their values one after another, and stays as it is.

    Args:
        model: on any device.
        inputs: what it is called with; two samples are tried on a copy of it.

    Returns:
        Ends the conversion at each call when it is removed; `None` where the model stays as it is.
    """
    if not (has_planes(model.parameters()) and has_planes(inputs)):
        return None
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            copy.deepcopy(model).eval()(*lay_out_inputs(model, tuple(x[:2].to(device) for x in inputs)))
    except RuntimeError:
        return None
    lay_out(model.parameters())
    return model.register_forward_pre_hook(lay_out_inputs)


def has_planes(tensors: Iterable[Tensor]) -> bool:
    """Whether one of `tensors` has four dimensions."""
    return any(tensor.dim() == 4 for tensor in tensors)


def lay_out(tensors: Iterable[Tensor]) -> None:
    """Lay out the 4-D ones of `tensors` channels last, each in place: their values stay."""
    for tensor in tensors:
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def lay_out_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001 - a forward pre-hook
    """The same inputs, those of shape `[B, C, H, W]` laid out channels last."""
    return tuple(
        x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.dim() == 4 else x for x in inputs
    )
