"""The float student in plain PyTorch, which all peers quantize."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.peers.nets import student
from benchmarks.peers.workbench import Job, Made, lines


def trained(job: Job, model: nn.Module, epochs: int, weights: Path) -> nn.Module:
    """Train a model from the start, and keep its weights."""
    if any(part.dim() == 4 for part in job.inputs):
        lay_out(model, torch.channels_last)
    job.fit(model.train(), epochs, job.net.rate)
    lay_out(model.eval(), torch.contiguous_format)
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    return model


def lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """Lay out the weights of 2-D convolutions."""
    for weights in model.parameters():
        if weights.dim() == 4:
            weights.data = weights.data.contiguous(memory_format=layout)


def make(job: Job) -> Made:
    """Train a float student, with or without a teacher, and export it."""
    new, epochs = student(job.case.net, job.data.sizes), job.budget.epochs(job.net)[0]
    model = trained(job, new, epochs, job.folder / "weights.safetensors")
    return Made(job.export(model), lines(trained), model)
