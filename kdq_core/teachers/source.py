"""Who answers for the teacher while a student trains: the model itself, or what it said before."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from kdq_core.tensors import Batch, Outputs, View
from kdq_core.training.losses import outputs_of


class TeacherSource(Protocol):
    """Gives the teacher's outputs for a batch of a view, without gradients."""

    def view(self, epoch: int) -> View:
        """The view whose batches it can answer for in this epoch."""

    def __call__(self, batch: Batch) -> Outputs:
        """Its outputs, on the device of the batch's inputs."""


class OnlineTeacher:
    """The model, asked anew for every batch; each epoch has a view of its own.

    It runs in eval mode without gradients.

    Attributes:
        model: the teacher, on the device of the fit.
        seed: of the views.
        half: run it in bf16 (autocast), for devices that have it.
    """

    def __init__(self, model: nn.Module, *, seed: int = 0, half: bool = False) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.seed = seed
        self.half = half

    def view(self, epoch: int) -> View:
        """View number `epoch`."""
        return View(self.seed, epoch)

    def __call__(self, batch: Batch) -> Outputs:
        """Outputs in float32."""
        device = batch.inputs[0].device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self.half):
            return in_float32(outputs_of(self.model, batch))


def in_float32(outputs: Outputs) -> Outputs:
    """The same outputs as float32."""
    return Outputs(outputs.logits.float(), {name: value.float() for name, value in outputs.features.items()})


def half_precision(device: torch.device) -> bool:
    """Whether a teacher on this device runs in bf16: on a GPU that computes in it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
