"""The forward pass of a model in bf16, with float32 weights and outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch import nn


@contextlib.contextmanager
def in_bf16(model: nn.Module, device: torch.device, *, half: bool = True) -> Iterator[None]:
    """Let `model` compute its forward pass in bf16 while the body runs, and give float32.

    Products are in bf16, and what follows from them until an operator that torch's autocast keeps in float32. Weights
    and the statistics of batch norms stay in float32, and so is what is computed from the outputs.

    Args:
        model: called by the body; not the module of several processes around it.
        device: of the model.
        half: false leaves the model as it is.
    """
    if not half:
        yield
        return
    plain, attributes = model.forward, vars(model)
    own = attributes.get("forward")  # a module may have one beside that of its class

    def forward(*inputs: Any, **named: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            given = plain(*inputs, **named)
        return convert_to_fp32(given)

    attributes["forward"] = forward
    try:
        yield
    finally:
        del attributes["forward"]
        if own is not None:
            attributes["forward"] = own
