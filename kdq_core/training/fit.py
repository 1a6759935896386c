"""The one training loop. Teacher, student and QAT student differ only in the loss passed in."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from kdq_core.errors import StageError, TransientError
from kdq_core.failures import out_of_memory
from kdq_core.recipe.spec import FitSpec
from kdq_core.store.records import EpochRecord
from kdq_core.tensors import Batch
from kdq_core.training.half import in_bf16
from kdq_core.training.layout import channels_last, has_planes, lay_out
from kdq_core.training.micro import MICRO, MicroBatch, said_of, said_of_ranks
from kdq_core.training.resume import Due, Progress, load_state, random_states, save_state, set_random_states
from kdq_core.training.rows import to_device
from kdq_core.training.stopping import AskedToStopError, Stop

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
        on_smaller: called with a text when a lack of memory makes the fit compute smaller micro-batches, or when
            several processes share the batches, if that changes the result.
        stop: says whether the fit shall keep its state and stop.
    """

    before_epoch: Callable[[int], None] = lambda _epoch: None
    before_step: Callable[[int, int], None] = lambda _done, _total: None
    after_step: Callable[[int, int], None] = lambda _done, _total: None
    after_backward: Callable[[], None] = lambda: None
    score: Callable[[nn.Module], Mapping[str, float]] = lambda _model: {}
    on_step: Callable[[int, int, float], None] = lambda _done, _total, _loss: None
    on_epoch: Callable[[EpochRecord], None] = lambda _record: None
    on_smaller: Callable[[str], None] = lambda _text: None
    stop: Stop = field(default_factory=Stop)


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Callable[[int], Iterable[Batch]],
    spec: FitSpec,
    *,
    samples: int,
    accelerator: Accelerator,
    half: bool = False,
    hooks: FitHooks | None = None,
    resume: Path | None = None,
    due: Due | None = None,
    first: int = 0,
    last: int | None = None,
) -> tuple[EpochRecord, ...]:
    """Train `model` in place, and leave it in eval mode. A model with 2-D convolutions runs channels last.

    Args:
        model: any module; its parameters with `requires_grad` are trained.
        loss: gives the weighted terms of one batch.
        batches: gives the batches of an epoch by its number, from 0; the same epoch must give the same batches. With
            several processes, each takes its share of every batch, so that steps and batch size stay as in `spec`. A
            loss that compares the samples of a batch then compares only the samples of the share, and batch norms
            measure the share.
        spec: epochs, optimizer, schedule.
        samples: number of samples of one epoch, for the learning-rate schedule.
        accelerator: device and processes.
        half: compute the forward pass of training steps in bf16; see `in_bf16`. All else is in float32: the losses,
            the weights, the optimizer, the statistics of batch norms, and scoring, because float weights are shipped.
        hooks: scoring, phases, progress.
        resume: the file that keeps the state. If it exists, `fit` resumes from it and gives the same bits as a fit
            without interruption. With it, `fit` also survives a lack of memory: it goes back to the state kept last,
            and computes smaller micro-batches. The file beside it with the ending `.micro` remembers their size.
        due: when the state is kept within an epoch; by default only between epochs.
        first: epochs of the schedule that are done before this fit. It counts epochs and steps from there.
        last: epochs of the schedule that are done after this fit; by default all.

    Returns:
        One record for each epoch of this fit.

    Raises:
        StageError: the loss is not finite, or scoring changed the model.
        TransientError: the fit was asked to stop; its state is kept.
    """
    hooks = hooks or FitHooks()
    example = next((batch.inputs for batch in batches(0)), ()) if has_planes(model.parameters()) else ()
    layout = channels_last(model, example)
    plain, optimizer = model.to(accelerator.device), make_optimizer(model, spec)
    if accelerator.num_processes > 1:  # a process alone needs none of it, and small nets would pay for it in each step
        model, optimizer = accelerator.prepare(model, optimizer)
    micro = MicroBatch(None if resume is None else resume.with_suffix(MICRO))
    span, steps = range(first, spec.epochs if last is None else last), math.ceil(samples / spec.batch_size)
    run = _Fit(model, plain, loss, optimizer, spec, accelerator, half, hooks, micro, resume, due or Due(), span, steps)
    run.tell_of_ranks()
    while not run.tried(batches, planes=layout is not None):
        clear_device_cache(garbage_collection=True)  # here, where no traceback holds tensors any more
    if layout is not None:
        layout.remove()
    plain.eval()
    return tuple(run.progress.history)


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


@dataclass
class _Fit:
    """A fit at work; see `fit` and `FitHooks`. `model` is `plain`, or what shares its batches among processes."""

    model: nn.Module
    plain: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    spec: FitSpec
    accelerator: Accelerator
    half: bool
    hooks: FitHooks
    micro: MicroBatch
    file: Path | None
    due: Due
    span: range
    per_epoch: int
    progress: Progress = field(default_factory=Progress)

    def tell_of_ranks(self) -> None:
        """Tell of several processes, if the result is not that of one."""
        ranks = self.accelerator.num_processes
        said = said_of_ranks(self.model.train(), ranks, self.spec.batch_size) if ranks > 1 else None
        if said is not None:
            self.hooks.on_smaller(said)

    def tried(self, batches: Callable[[int], Iterable[Batch]], *, planes: bool) -> bool:
        """Fit from the state kept last; whether the memory was enough for it."""
        self._load(planes=planes)
        try:
            for epoch in self.span[len(self.progress.history) :]:
                self._epoch(batches(epoch), epoch)
        except Exception as error:
            alone, batch_size = self.accelerator.num_processes == 1, self.spec.batch_size
            if self.file is None or not alone or not out_of_memory(error):
                raise
            size = self.micro.halve(self.plain, batch_size)
            if size is None:
                raise
            self.hooks.on_smaller(said_of(self.plain, size, batch_size))
            self.optimizer.zero_grad(set_to_none=True)
            return False
        return True

    def _load(self, *, planes: bool) -> None:
        """Load the kept state; if there is none, keep that of the beginning."""
        self.progress = Progress()
        if self.file is not None and self.file.exists():
            self.progress = load_state(self.file, self.plain, self.optimizer)
            if planes:
                lay_out(v for state in self.optimizer.state.values() for v in state.values() if torch.is_tensor(v))
        if self.progress == Progress():
            self._keep()

    def _keep(self, random: Mapping[str, Tensor] | None = None) -> None:
        file = self.file
        if file is not None and self.accelerator.is_main_process:
            self.due.keep(lambda: save_state(file, self.plain, self.optimizer, self.progress, random))

    def _epoch(self, batches: Iterable[Batch], epoch: int) -> None:
        self.hooks.before_epoch(epoch)
        values = self._trained(batches, epoch)
        random = random_states()
        try:
            values |= _scored(self.plain, self.hooks.score)
        except AskedToStopError:
            self._keep(random)  # as it was before scoring
            raise self._stopped(epoch) from None
        record = EpochRecord(epoch=epoch + 1, values=values)
        self.progress = Progress([*self.progress.history, record])
        self.hooks.on_epoch(record)
        if epoch + 1 < self.span.stop:
            self._keep()
            self._check_stop(epoch + 1)

    def _trained(self, batches: Iterable[Batch], epoch: int) -> dict[str, float]:
        """Do the steps of an epoch that are left; gives the curves of all its steps."""
        self.model.train()
        partial, total = self.progress.partial, self.spec.epochs * self.per_epoch
        told = time.monotonic()
        for batch in _after(batches, partial.steps):
            done = epoch * self.per_epoch + partial.steps + 1
            self.hooks.before_step(done - 1, total)
            rate = learning_rate(self.spec, done - 1, total)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            values = self._step(batch)
            self.hooks.after_step(done, total)
            if not math.isfinite(values["loss"]):
                raise StageError(
                    f"the loss became {values['loss']!r} in epoch {epoch + 1}, step {partial.steps + 1} "
                    f"({_terms(values)}); lower learning_rate, set clip_norm, or check the data for NaN"
                )
            partial.add(values)
            if self.due():
                self._keep()
            if time.monotonic() - told > 0.2:
                told = time.monotonic()
                self.hooks.on_step(done, total, values["loss"])
            if self.hooks.stop.asked:
                self._keep()
                raise self._stopped(epoch)
        if not partial.steps:
            raise StageError("the workload gave no training batch; check its split 'train'")
        sums = partial.sums
        self.hooks.on_step((epoch + 1) * self.per_epoch, total, sums["loss"] / partial.steps)
        curves = sums if len(sums) > 2 else {"loss": sums["loss"]}  # a single term is the loss
        return {f"train/{name}": value / partial.counts[name] for name, value in curves.items()}

    def _step(self, batch: Batch) -> dict[str, float]:
        """One step of the optimizer: the gradient is that of the whole batch, however it is cut."""
        self.optimizer.zero_grad(set_to_none=True)
        told: dict[str, Tensor] = {}
        ranks = self.accelerator.num_processes
        for part, weight in self.micro.parts(batch, self.accelerator.process_index, ranks):
            with in_bf16(self.plain, self.accelerator.device, half=self.half):
                terms = weight(self.loss(self.model, to_device(part, self.accelerator.device)))
            if not terms:
                continue
            total = torch.stack([term.float() for term in terms.values()]).sum()
            if not total.requires_grad:
                raise StageError(
                    f"the loss ({', '.join(sorted(terms))}) carries no gradient to the model; let the workload's "
                    "loss() and the distillers compute with the model's outputs as they are, not detached and not as "
                    "numbers"
                )
            if ranks > 1:  # the gradient of every parameter must come, or the processes would wait for it
                total = total + 0.0 * sum(p.sum() for p in self.model.parameters() if p.requires_grad)
            torch.autograd.backward(total)
            for name, value in {"loss": total, **terms}.items():
                told[name] = told[name] + value.detach() if name in told else value.detach()
        self.hooks.after_backward()
        if self.spec.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.clip_norm)
        self.optimizer.step()
        if ranks > 1:
            told = {name: self.accelerator.reduce(value, "mean") for name, value in told.items()}
        return {name: value.item() for name, value in told.items()}

    def _check_stop(self, epoch: int) -> None:
        if self.hooks.stop.asked:
            raise self._stopped(epoch)

    def _stopped(self, epoch: int) -> TransientError:
        done = epoch * self.per_epoch + self.progress.partial.steps
        where = f"step {done} of {self.spec.epochs * self.per_epoch}"
        return TransientError(
            f"the fit was asked to stop after {where}; its state is kept, and the next try resumes it"
        )


def _after(batches: Iterable[Batch], steps: int) -> Iterator[Batch]:
    """The batches after the first `steps`; reading those changes no random generator."""
    left, random = iter(batches), random_states()
    for _ in range(steps):
        next(left, None)
    if steps:
        set_random_states(random)
    yield from left


def _scored(model: nn.Module, score: Callable[[nn.Module], Mapping[str, float]]) -> dict[str, float]:
    before = buffers_digest(model)
    model.eval()
    with torch.no_grad():
        values = dict(score(model))
    if buffers_digest(model) != before:
        raise StageError("scoring changed a buffer of the model, so test data leaked into it; switch its observers off")
    return values


def _terms(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in sorted(values.items()))
