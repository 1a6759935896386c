"""The work of the stage `quantize`: calibration alone, or training with the distillation loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.fx import GraphModule

from kdq_core.distillation.combining import DistillationLoss
from kdq_core.errors import StageError
from kdq_core.quantization.capture import BatchNorm, capture
from kdq_core.quantization.equalize import equalize
from kdq_core.quantization.prepare import set_phase, weights_of
from kdq_core.quantization.refine import correct_biases, reestimate_batch_norm
from kdq_core.recipe.spec import QuantizeSpec
from kdq_core.store.records import EpochRecord
from kdq_core.tensors import Batch
from kdq_core.training.finite import odd_samples_of, why_odd
from kdq_core.training.fit import Loss
from kdq_core.training.losses import hard_loss, validation
from kdq_core.training.rows import to_device
from kdq_core.work.budget import go_back, shared, whole_fit
from kdq_core.work.data import EVALUATION_BATCH
from kdq_core.work.quantized import prepared
from kdq_core.work.teaching import float_student, student_and_loss_of
from kdq_core.work.twin import History, with_gains

if TYPE_CHECKING:
    from kdq_core.work.work import StageWork


@dataclass(frozen=True)
class Trained:
    """A quantized student, its curves, and further fields of its record."""

    model: GraphModule
    history: History
    told: Mapping[str, Any] = field(default_factory=dict)


def calibrated(work: StageWork) -> Trained:
    """Quantize the student with ranges from calibration data; no weight is trained."""
    device = work.accelerator().device
    _, model = started(work, device)
    finished(work, model, device)
    score = validation(work.workload, device, EVALUATION_BATCH)
    history = (EpochRecord(epoch=1, values=dict(score(model.eval()))),)
    return Trained(model, history)


def trained(work: StageWork) -> Trained:
    """Train the student with quantizers in place: on hard labels and, if there is a teacher, on its outputs.

    If the recipe asks for a control, KDQ trains a second quantized student without the teacher.
    """
    accelerator, spec = work.accelerator(), work.section("quantize")
    device = accelerator.device
    student, model = started(work, device)
    before = {} if shared(work) else _calibrated_values(work, model, device)  # of a student in the midst of a schedule
    own = spec.taught_by == "student"
    if not own and not work.has("teacher"):
        work.seeded("quantize/fit")
        history = _fitted(work, model, hard_loss(work.workload), model, accelerator)
        return Trained(model, history, {"untrained": before})
    module, soft = student_and_loss_of(
        work, model, device, plain=student, teacher=float_student(work, device) if own else None
    )
    work.seeded("quantize/fit")  # building a teacher draws random numbers, reading kept outputs does not

    def fit() -> History:
        return _fitted(work, module, soft, model, accelerator)

    if not spec.control:
        return Trained(model, fit(), {"compared": soft.compared, "untrained": before})

    def fit_twin(at: StageWork, twin: nn.Module, hard: Loss) -> History:
        assert isinstance(twin, GraphModule)
        return _fitted(at, twin, hard, twin, accelerator)

    history, gained = with_gains(
        work, model, fit, lambda: started(work, device)[1], fit_twin,
        batch_size=whole_fit(work, spec.fit).batch_size, device=device,
    )  # fmt: skip
    return Trained(model, history, {"gains": gained, "compared": soft.compared, "untrained": before})


def _calibrated_values(work: StageWork, model: GraphModule, device: torch.device) -> dict[str, float]:
    """The validation curves that calibration alone gives, which tell what the training is worth."""
    set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
    return dict(validation(work.workload, device, EVALUATION_BATCH)(model.eval()))


def started(work: StageWork, device: torch.device) -> tuple[nn.Module, GraphModule]:
    """Load the student, and prepare and calibrate its graph on `device`; each call gives the same values."""
    spec = work.section("quantize")
    student = work.model("student")
    go_back(work, student)
    work.seeded("quantize")
    graph = capture(student, work.example())
    if spec.reestimate_batch_norm and all(m.fixed for m in graph.modules() if isinstance(m, BatchNorm)):
        raise StageError(_nothing("reestimate_batch_norm", "a batch norm that trains"))
    if spec.equalize and not equalize(graph):
        raise StageError(_nothing("equalize", "two layers in a row with nothing between them but relu"))
    model = prepared(work, graph).to(device)
    calibrate(work, model, device)
    if spec.bias_correction:
        set_phase(model, observe=False, quantize=False, freeze_batch_norm=True)
        if not correct_biases(model, _calibration(work, device)):
            raise StageError(_nothing("bias_correction", "a quantized layer with a bias, or a batch norm behind it"))
    return student, model


def _nothing(option: str, wanted: str) -> str:
    return f"'quantize.{option}' finds nothing to do: the student does not have {wanted}; leave it out"


def _fitted(
    work: StageWork, module: nn.Module, loss: Loss, model: GraphModule, accelerator: Accelerator
) -> tuple[EpochRecord, ...]:
    """Fit `module`, which is `model` or a module around it, through the phases of the recipe.

    The phase depends on the step alone, so a resumed fit gives the same bits as one that was not interrupted.
    """
    spec = work.section("quantize")
    schedule, fit = shared(work), whole_fit(work, spec.fit)
    first = 0 if schedule is None else schedule.kept
    whole, enter = with_weight_loss(loss, model, spec.weight_loss), phases(spec, model, fit.epochs - first)
    soft = loss if isinstance(loss, DistillationLoss) else None

    def before_step(done: int, total: int) -> None:
        before = first * total // fit.epochs
        enter(done - before, total - before)
        if soft is not None:
            soft.before_step(done, total)

    scheduled = None if soft is None else soft.scheduled
    history = work.fit(
        module, whole, fit, accelerator=accelerator, scheduled=scheduled, before_step=before_step, first=first
    )
    finished(work, model, accelerator.device)
    return history


def finished(work: StageWork, model: GraphModule, device: torch.device) -> None:
    """Measure batch-norm statistics anew if the recipe asks for it; then let `model` round, and observe nothing."""
    if work.section("quantize").reestimate_batch_norm:
        set_phase(model, observe=False, quantize=True, freeze_batch_norm=False)
        reestimate_batch_norm(model, _calibration(work, device))
    set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
    model.eval()


def with_weight_loss(loss: Loss, model: GraphModule, factor: float) -> Loss:
    """Add the quantization loss to `loss`: `factor` * mean (W - W_q)^2 over all quantized weights.

    W_q counts as a constant, so that the gradient pulls each weight to its level.
    """
    if not factor:
        return loss
    pairs = tuple(weights_of(model))
    count = sum(value().numel() for value, _ in pairs)

    def both(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        terms = loss(module, batch)
        weights = [(value(), fake) for value, fake in pairs]
        errors = [(weight - fake(weight).detach()).square().sum() for weight, fake in weights]
        return {**terms, "quantization": factor / count * torch.stack(errors).sum()}

    return both


def phases(spec: QuantizeSpec, model: GraphModule, epochs: int) -> Callable[[int, int], None]:
    """Make a function that sets the phase of `model` before a step, from the steps done and the steps in all.

    Args:
        spec: says after which share of the steps a phase begins.
        model: from `prepare`.
        epochs: that the quantized student trains.
    """
    now: list[bool] = []

    def enter(done: int, total: int) -> None:
        shares = (spec.freeze_observers, spec.freeze_batch_norm)
        still = [done >= _begin(share, epochs, total) for share in shares]
        if still != now:
            now[:] = still
            set_phase(model, observe=not still[0], quantize=True, freeze_batch_norm=still[1])

    return enter


def _begin(share: float, epochs: int, total: int) -> float:
    """The step (of `total`) at which a phase begins: after `share` of the steps, and at the latest with the last epoch.

    In a fit of one epoch, the latest is its last step. A share of 1 means never.
    """
    least = total // epochs if epochs > 1 else 1
    return min(share * total, total - least) if share < 1 else math.inf


def calibrate(work: StageWork, model: GraphModule, device: torch.device) -> None:
    """Run some training batches in float through the observers, so that the first step has ranges."""
    set_phase(model, observe=True, quantize=False, freeze_batch_norm=True)
    model.eval()
    with torch.no_grad():
        for batch in _calibration_batches(work, device):
            try:
                model(*batch.inputs)
            except StageError as error:
                set_phase(model, observe=False, quantize=False, freeze_batch_norm=True)
                odd = odd_samples_of(model, batch)
                if not odd:
                    raise
                raise StageError(why_odd("the student", odd, "train", len(batch.ids))) from error


def _calibration(work: StageWork, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Inputs of the first training batches."""
    return (batch.inputs for batch in _calibration_batches(work, device))


def _calibration_batches(work: StageWork, device: torch.device) -> Iterator[Batch]:
    """The first training batches."""
    spec, seed = work.section("quantize"), work.seed_of("calibration")
    batches = work.workload.batches("train", batch_size=spec.calibration_batch_size, seed=seed)
    number = 0
    for number, batch in enumerate(itertools.islice(batches, spec.calibration_batches), start=1):
        check_finite(batch, number)
        yield to_device(batch, device)
    if not number:
        raise StageError("the workload gave no training batch to calibrate with; check its split 'train'")


def check_finite(batch: Batch, number: int) -> None:
    """Refuse calibration data that holds NaN or infinity, because the ranges would follow it.

    Raises:
        StageError: names the batch `number`, the input, and the first such sample.
    """
    for index, x in enumerate(batch.inputs):
        wrong = ~x.isfinite() if x.is_floating_point() else None
        if wrong is None or not bool(wrong.any()):
            continue
        rows = wrong.reshape(len(x), -1).any(1)
        first = int(rows.int().argmax())
        which = "its input" if len(batch.inputs) == 1 else f"its input {index}"
        raise StageError(
            f"training batch {number} of the calibration is not finite: {which} holds {float(x[wrong][0])} in "
            f"{int(rows.sum())} of {len(x)} samples, first in sample {int(batch.ids[first])}; mend or drop these "
            "samples in the workload"
        )
