"""Train, ask and write a net in plain PyTorch, as the peers' users do by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.nets import Net

if TYPE_CHECKING:
    import numpy as np

WARMUP = 0.05
AT_ONCE = 250
LARGEST = 4096
"""Samples of the largest call that an exported file takes."""


def loss_of(net: Net, outputs: Tensor, labels: Tensor, answers: Tensor | None) -> Tensor:
    """Return the loss of a batch, with the teacher's answers if there are any (Hinton et al. 2015)."""
    if net.ratings:
        hard = F.mse_loss(outputs, labels)
        return hard if answers is None else (1 - net.alpha) * hard + net.alpha * F.mse_loss(outputs, answers)
    hard = F.cross_entropy(outputs, labels)
    if answers is None:
        return hard
    t = net.temperature
    soft = F.kl_div(F.log_softmax(outputs / t, 1), F.softmax(answers / t, 1), reduction="batchmean") * t**2
    return (1 - net.alpha) * hard + net.alpha * soft


def optimizer_of(net: Net, parameters: Sequence[Tensor], rate: float) -> torch.optim.Optimizer:
    """Make the optimizer of a net."""
    if net.sgd:
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=net.decay, nesterov=True)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=net.decay)


def fit(
    net: Net,
    model: Callable[..., Tensor],
    parameters: Sequence[Tensor],
    inputs: tuple[Tensor, ...],
    labels: Tensor,
    answers: Tensor | None,
    *,
    epochs: int,
    rate: float,
    seed: int,
    before: Callable[[int], None] | None = None,
) -> None:
    """Train with a cosine after a short warm-up; `before` is called with the number of each epoch."""
    optimizer = optimizer_of(net, parameters, rate)
    random = torch.Generator().manual_seed(1000 + seed)
    steps = math.ceil(len(labels) / net.batch) * epochs
    warm = max(1, round(WARMUP * steps))
    course = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))),
    )
    for epoch in range(epochs):
        if before is not None:
            before(epoch)
        for rows in torch.split(torch.randperm(len(labels), generator=random), net.batch):
            outputs = model(*(part[rows] for part in inputs))
            loss = loss_of(net, outputs, labels[rows], None if answers is None else answers[rows])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            course.step()


@torch.no_grad()
def ask(model: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> np.ndarray:
    """Return the outputs of a model over all samples, `[N, ...]`."""
    return torch.cat([model(*batch) for batch in parts(inputs, AT_ONCE)]).numpy()


def runs(path: Path, names: Sequence[str], *, optimized: bool = True) -> Callable[..., Tensor]:
    """Return what runs an ONNX file in ONNX Runtime, with one thread; without optimisations it computes in float."""
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def answers(*inputs: Tensor) -> Tensor:
        given = {name: part.numpy() for name, part in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return answers


def parts(inputs: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches of `size` samples."""
    yield from zip(*(torch.split(part, size) for part in inputs), strict=True)


def free_batch(inputs: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """Return the free first axis of each input, for `torch.export`."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST)
    return tuple({0: batch} for _ in inputs)


def to_onnx(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, names: Sequence[str]) -> None:
    """Export a model as PyTorch's documents advise."""
    torch.onnx.export(
        model, inputs, str(path), dynamo=True, input_names=list(names), output_names=["logits"],
        dynamic_shapes=free_batch(inputs), external_data=False, verbose=False,
    )  # fmt: skip


def to_onnx_by_script(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, names: Sequence[str]) -> None:
    """Export a model with the older exporter, for models that the newer one refuses."""
    with torch.no_grad():
        torch.onnx.export(
            model, inputs, str(path), dynamo=False, opset_version=17, input_names=list(names), output_names=["logits"],
            dynamic_axes={name: {0: "batch"} for name in (*names, "logits")},
        )  # fmt: skip
