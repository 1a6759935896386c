"""Time a training step with fake quantization and the float step in turns."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from benchmarks.peers.float_peer import lay_out
from benchmarks.peers.nets import student
from benchmarks.peers.training import loss_of, optimizer_of
from benchmarks.peers.workbench import Job

if TYPE_CHECKING:
    from torch import nn

ROUNDS, WARM = 30, 3


def beside_float(
    job: Job, prepare: Callable[[nn.Module], nn.Module], layout: torch.memory_format = torch.contiguous_format
) -> dict[str, float]:
    """Return milliseconds of both, and the median, lowest and highest quartile of their ratio.

    A step is forward, loss without a teacher, backward and optimizer.
    """
    torch.manual_seed(0)
    model = student(job.case.net, job.data.sizes)
    models = [copy.deepcopy(model).train(), prepare(model.eval())]
    inputs = tuple(part[: job.net.batch] for part in job.inputs)
    if any(part.dim() == 4 for part in inputs):
        for one in models:
            lay_out(one, layout)
        inputs = tuple(part.contiguous(memory_format=layout) for part in inputs)
    labels = torch.from_numpy(job.data.train.labels[: job.net.batch])
    steps = [_stepper(job, one, inputs, labels) for one in models]
    for _ in range(WARM):
        for step in steps:
            step()
    times = [[step() for step in steps] for _ in range(ROUNDS)]
    low, ratio, high = statistics.quantiles([quantized / plain for plain, quantized in times], n=4)
    plain, quantized = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return {"float_ms": plain, "qat_ms": quantized, "ratio": ratio, "low": low, "high": high}


def _stepper(job: Job, model: nn.Module, inputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> Callable[[], float]:
    optimizer = optimizer_of(job.net, list(model.parameters()), 1e-6)

    def step() -> float:
        began = time.perf_counter()
        loss = loss_of(job.net, model(*inputs), labels, None)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        return time.perf_counter() - began

    return step
