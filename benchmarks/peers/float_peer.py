"""The float student in plain PyTorch, which all peers quantize."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.peers.job import Job, Made, lines
from benchmarks.peers.nets import student


def trained(job: Job, model: nn.Module, epochs: int, weights: Path) -> nn.Module:
    """Train a model from the start, and keep its weights."""
    if any(part.dim() == 4 for part in job.inputs):
        model = model.to(memory_format=torch.channels_last)
    job.fit(model.train(), epochs, job.net.rate)
    model = model.eval().to(memory_format=torch.contiguous_format)
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    return model


def make(job: Job) -> Made:
    """Train a float student, with or without a teacher, and export it."""
    new, epochs = student(job.case.net, job.data.sizes), job.budget.epochs(job.net)[0]
    model = trained(job, new, epochs, job.folder / "weights.safetensors")
    return Made(job.export(model), lines(trained), model)
