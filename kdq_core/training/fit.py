"""The one training loop. Teacher, student and QAT student differ only in the loss passed in."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kdq_core.errors import StageError
from kdq_core.recipe.spec import FitSpec
from kdq_core.store.records import EpochRecord
from kdq_core.tensors import Batch
from kdq_core.training.layout import channels_last, has_planes, lay_out
from kdq_core.training.resume import load_state, save_state

Loss = Callable[[nn.Module, Batch], Mapping[str, Tensor]]
"""Weighted scalar terms of one batch by name; their sum is minimised."""


@dataclass(frozen=True)
class FitHooks:
    """What the caller may do around a fit.

    Attributes:
        before_epoch: called with the epoch, from 0, before its first step.
        before_step: called before each step with the steps done and the steps in all (phases of QAT, schedules
            of the loss).
        after_step: called after each step with the same two numbers (keeps pruned weights at zero).
        after_backward: called in each step when the gradients are computed, before they are clipped and used.
        score: gives the curves to add after an epoch. It sees the model in eval mode and must change no buffer of it.
        on_step: called with steps done, steps in all and the loss, a few times a second.
        on_epoch: called with each finished epoch's record.
    """

    before_epoch: Callable[[int], None] = lambda _epoch: None
    before_step: Callable[[int, int], None] = lambda _done, _total: None
    after_step: Callable[[int, int], None] = lambda _done, _total: None
    after_backward: Callable[[], None] = lambda: None
    score: Callable[[nn.Module], Mapping[str, float]] = lambda _model: {}
    on_step: Callable[[int, int, float], None] = lambda _done, _total, _loss: None
    on_epoch: Callable[[EpochRecord], None] = lambda _record: None


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Callable[[int], Iterable[Batch]],
    spec: FitSpec,
    *,
    samples: int,
    accelerator: Accelerator,
    hooks: FitHooks | None = None,
    resume: Path | None = None,
) -> tuple[EpochRecord, ...]:
    """Train `model` in place, and leave it in eval mode and float32. A model with 2-D convolutions runs channels last.

    Args:
        model: any module; its parameters with `requires_grad` are trained.
        loss: gives the weighted terms of one batch.
        batches: gives the batches of an epoch by its number, from 0; the same epoch must give the same batches. With
            several processes, each takes its share of every batch, so that steps and batch size stay as in `spec`. A
            loss that compares the samples of a batch then compares only the samples of the share.
        spec: epochs, optimizer, schedule.
        samples: number of samples of one epoch, for the learning-rate schedule.
        accelerator: device, precision and processes.
        hooks: scoring, phases, progress.
        resume: the file that keeps the state after each epoch. If it exists, `fit` resumes from it and gives the same
            bits as a fit without interruption.

    Returns:
        One record for each epoch.

    Raises:
        StageError: the loss is not finite, or scoring changed the model.
    """
    hooks = hooks or FitHooks()
    layout = None
    if has_planes(model.parameters()):
        layout = channels_last(model, next((batch.inputs for batch in batches(0)), ()))
    optimizer = make_optimizer(model, spec)
    model, optimizer = accelerator.prepare(model, optimizer)
    history: list[EpochRecord] = []
    if resume is not None and resume.exists():
        history = load_state(resume, accelerator.unwrap_model(model), optimizer)
        if layout is not None:
            lay_out(value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value))
    per_epoch = math.ceil(samples / spec.batch_size)
    for epoch in range(len(history), spec.epochs):
        hooks.before_epoch(epoch)
        values = _epoch(model, loss, batches(epoch), optimizer, spec, epoch, per_epoch, accelerator, hooks)
        values |= _scored(accelerator.unwrap_model(model), hooks.score)
        record = EpochRecord(epoch=epoch + 1, values=values)
        history.append(record)
        hooks.on_epoch(record)
        if resume is not None and accelerator.is_main_process and epoch + 1 < spec.epochs:
            save_state(resume, accelerator.unwrap_model(model), optimizer, history)
    if layout is not None:
        layout.remove()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
    return tuple(history)


def make_optimizer(model: nn.Module, spec: FitSpec) -> torch.optim.Optimizer:
    """Make SGD (Nesterov 0.9) or AdamW. Weight decay skips vectors and scalars (biases, norms, scales)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise StageError("the model has no trainable parameter; check that its parameters require gradients")
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=spec.learning_rate)


def learning_rate(spec: FitSpec, step: int, total: int) -> float:
    """Give the learning rate of `step` (from 0) of `total`: linear warm-up, then the schedule of `spec`."""
    warm = spec.warmup * total
    if step + 1 <= warm:
        return spec.learning_rate * (step + 1) / warm
    progress = min(1.0, max(0.0, (step - warm) / max(1.0, total - warm)))
    if spec.schedule == "cosine":
        return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    return spec.learning_rate * (1 - progress if spec.schedule == "linear" else 1.0)


def buffers_digest(model: nn.Module) -> str:
    """Give the sha256 of all buffers of `model`, in order. Scoring a model must not change it."""
    digest = hashlib.sha256()
    for name, buffer in model.named_buffers():
        digest.update(name.encode())
        digest.update(buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _epoch(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    spec: FitSpec,
    epoch: int,
    per_epoch: int,
    accelerator: Accelerator,
    hooks: FitHooks,
) -> dict[str, float]:
    model.train()
    sums: dict[str, float] = {}
    counts: Counter[str] = Counter()
    told, steps, total = time.monotonic(), 0, spec.epochs * per_epoch
    for steps, batch in enumerate(batches, start=1):
        done = epoch * per_epoch + steps
        hooks.before_step(done - 1, total)
        rate = learning_rate(spec, done - 1, total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        values = _step(
            model, loss, to_device(share(batch, accelerator), accelerator.device), optimizer, spec, accelerator, hooks
        )
        hooks.after_step(done, total)
        if not math.isfinite(values["loss"]):
            raise StageError(
                f"the loss became {values['loss']!r} in epoch {epoch + 1}, step {steps} ({_terms(values)}); "
                "lower learning_rate, set clip_norm, or check the data for NaN"
            )
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
            counts[name] += 1
        if time.monotonic() - told > 0.2:
            told = time.monotonic()
            hooks.on_step(done, total, values["loss"])
    if not steps:
        raise StageError("the workload gave no training batch; check its split 'train'")
    hooks.on_step((epoch + 1) * per_epoch, total, sums["loss"] / steps)
    curves = sums if len(sums) > 2 else {"loss": sums["loss"]}  # a single term is the loss
    return {f"train/{name}": value / counts[name] for name, value in curves.items()}


def _step(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    spec: FitSpec,
    accelerator: Accelerator,
    hooks: FitHooks,
) -> dict[str, float]:
    with accelerator.autocast():
        terms = loss(model, batch)
    total = torch.stack([term.float() for term in terms.values()]).sum()
    if not total.requires_grad:
        raise StageError(
            f"the loss ({', '.join(sorted(terms))}) carries no gradient to the model; let the workload's loss() and "
            "the distillers compute with the model's outputs as they are, not detached and not as numbers"
        )
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(total)
    hooks.after_backward()
    if spec.clip_norm is not None:
        accelerator.clip_grad_norm_(model.parameters(), spec.clip_norm)
    optimizer.step()
    told = {"loss": total, **terms}
    return {name: accelerator.reduce(value.detach(), "mean").item() for name, value in told.items()}


def _scored(model: nn.Module, score: Callable[[nn.Module], Mapping[str, float]]) -> dict[str, float]:
    before = buffers_digest(model)
    model.eval()
    with torch.no_grad():
        values = dict(score(model))
    if buffers_digest(model) != before:
        raise StageError("scoring changed a buffer of the model, so test data leaked into it; switch its observers off")
    return values


def share(batch: Batch, accelerator: Accelerator) -> Batch:
    """Give this process its rows of `batch`: every n-th row with n processes. If rows run out, the first are reused."""
    world, rows = accelerator.num_processes, len(batch.ids)
    if world == 1:
        return batch
    mine = (torch.arange(math.ceil(rows / world)) * world + accelerator.process_index) % rows
    return rows_of(batch, mine)


def rows_of(batch: Batch, at: Tensor) -> Batch:
    """Give the samples of `batch` at the positions `at` `[n]`."""
    return replace(
        batch,
        inputs=tuple(x[at] for x in batch.inputs),
        targets=None if batch.targets is None else batch.targets[at],
        ids=batch.ids[at],
        extra={name: x[at] for name, x in batch.extra.items()},
        tasks={name: x[at] for name, x in batch.tasks.items()},
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on `device`; the numbers of the samples stay on the CPU."""
    if device.type == "cpu":
        return batch
    return replace(
        batch,
        inputs=tuple(x.to(device, non_blocking=True) for x in batch.inputs),
        targets=None if batch.targets is None else batch.targets.to(device, non_blocking=True),
        extra={name: x.to(device, non_blocking=True) for name, x in batch.extra.items()},
        tasks={name: x.to(device, non_blocking=True) for name, x in batch.tasks.items()},
    )


def _terms(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in sorted(values.items()))
