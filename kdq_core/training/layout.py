"""Channels last: the memory layout in which 2-D convolutions train fastest.

KDQ does not use it for every model. On x86 CPUs, oneDNN's backward pass writes beyond its memory for a channels-last
1x1 convolution with a stride and less than 16 input channels (https://github.com/uxlfoundation/oneDNN/issues/6035).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

CONVS = {torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding}
CHANNEL_BLOCK = 16
"""The most channels that oneDNN computes at a time."""


def channels_last(model: nn.Module, inputs: tuple[Tensor, ...]) -> RemovableHandle | None:
    """Let `model` compute channels last if it has 2-D convolutions. Weights are converted now, images at each call.

    A model that calls `view` on images needs contiguous values, and stays as it is. A model in which oneDNN would write
    beyond its memory computes channels first: its images are converted to that at each call.

    Args:
        model: on any device.
        inputs: an example of what the model is called with; a copy of the model tries the first two samples.

    Returns:
        A handle: removing it ends the conversion at each call. `None` if the model stays as it is.
    """
    if not (has_planes(model.parameters()) and has_planes(inputs)):
        return None
    device = next(model.parameters()).device
    if device.type == "cpu" and overflows(model):
        return model.register_forward_pre_hook(channels_first)
    try:
        with torch.no_grad():
            copy.deepcopy(model).eval()(*lay_out_inputs(model, tuple(x[:2].to(device) for x in inputs)))
    except RuntimeError:
        return None
    lay_out(model.parameters())
    return model.register_forward_pre_hook(lay_out_inputs)


def has_planes(tensors: Iterable[Tensor]) -> bool:
    """Tell whether one of `tensors` has four dimensions."""
    return any(tensor.dim() == 4 for tensor in tensors)


def lay_out(tensors: Iterable[Tensor]) -> None:
    """Lay out the 4-D tensors among `tensors` channels last, in place; their values stay.

    Weights of a single channel get the strides of that order too, by which a convolution tells it: `contiguous` would
    leave theirs, and all behind the first layer of a net for grey images would be converted again in each step.
    """
    for tensor in tensors:
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def lay_out_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001 - a forward pre-hook
    """Give the same inputs, with those of shape `[B, C, H, W]` laid out channels last."""
    return tuple(
        x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.dim() == 4 else x for x in inputs
    )


def channels_first(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ARG001 - a forward pre-hook
    """Give the same inputs, with those of shape `[B, C, H, W]` laid out channels first.

    They get the strides of that order even if an axis has length 1: PyTorch takes a single channel with a stride of 1
    for channels last.
    """
    return tuple(
        torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x) if isinstance(x, Tensor) and x.dim() == 4 else x
        for x in inputs
    )


def overflows(model: nn.Module) -> bool:
    """Tell whether `model`, a module or a captured graph, has a convolution that oneDNN cannot train channels last."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _overflows(module.weight, module.stride):
            return True
        nodes = module.graph.nodes if isinstance(module, fx.GraphModule) else ()
        for node in nodes:
            if node.target in CONVS:
                weight = node.args[1]
                while weight.op == "call_module":  # a fake-quantizer
                    weight = weight.args[0]
                stride = node.args[3] if len(node.args) > 3 else 1
                if weight.op == "get_attr" and _overflows(module.get_parameter(str(weight.target)), stride):
                    return True
    return False


def _overflows(weight: Tensor, stride: Any) -> bool:
    strides = (stride,) if isinstance(stride, int) else tuple(stride)
    return tuple(weight.shape[2:]) == (1, 1) and max(strides) > 1 and weight.shape[1] < CHANNEL_BLOCK
