"""The gain of a teacher: how much better its student is than the control, a student trained without the teacher.

What: the control has the student's start, seeds, batches, steps and phases, but trains with `hard_loss` alone.
    Both predict every labelled sample of the test split, in PyTorch. The gain is the mean difference. A model with
    several tasks has one gain for each task.
Formula: with classes, d_i is +1 if only the student is right, -1 if only the control is right, and 0 otherwise.
    Without classes, d_i is the difference of the hard losses of sample i. The 95 % interval is m +- t s / sqrt(n), with
    mean m and standard deviation s of the d_i. For losses, t is the quantile of Student's t. For right and wrong
    answers, t is 1.96, and a +1 and a -1 are first added to the d_i, so that few disagreements show no gain.
Source: adding +1 and -1 is the adjustment of Bonett and Price 2012, "Adjusted Wald Confidence Interval for a Difference
    of Binomial Proportions Based on Paired Data", Journal of Educational and Behavioral Statistics 37(4).
Limits: the interval covers the choice of test samples. It does not cover the seed: both students have one seed, and
    another seed would give another pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from kdq_core.errors import StageError
from kdq_core.intervals import paired, student_975
from kdq_core.plugins.kinds import Workload
from kdq_core.store.records import Gain
from kdq_core.tensors import Batch, Outputs
from kdq_core.training.losses import by_task, has_classes, labelled, labelled_tasks, outputs_of
from kdq_core.training.rows import IGNORED, rows_of, to_device


def check_labels(train: Iterable[Batch], test: Iterable[Batch]) -> None:
    """Refuse a control that has no labels to learn from or to be measured on.

    Raises:
        StageError: a split has no label at all.
    """
    for split, batches in (("train", train), ("test", test)):
        if not labelled(batches):
            raise StageError(
                f"'control' asks for a student without the teacher, which needs labels, but no batch of the workload's "
                f"split {split!r} has any; label some, or drop 'control'"
            )


def remembered(device: torch.device) -> Callable[[], None]:
    """Remember the state of torch's random generators.

    Returns:
        A function that restores the state, so that a second fit draws the same numbers.
    """
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind() -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)

    return rewind


@torch.no_grad()
def gains(
    student: nn.Module,
    control: nn.Module,
    workload: Workload,
    device: torch.device,
    batch_size: int,
    *,
    train: Callable[[], Iterable[Batch]] | None = None,
) -> tuple[Gain, ...]:
    """Measure the gain of `student` over `control` on the labelled samples of the test split.

    Args:
        student: in eval mode on `device`.
        control: in eval mode on `device`.
        workload: gives the batches and the hard loss.
        device: where both models compute.
        batch_size: samples in a batch.
        train: gives the training batches. A task without labels in them is left out: the control could not learn it.

    Returns:
        One gain; with several tasks, one for each task that has labels.

    Raises:
        StageError: there are fewer than two such samples, or a loss is not finite.
    """
    found: dict[str, list[Tensor]] = {}
    learnt: set[str] | None = None
    for given in workload.batches("test", batch_size=batch_size):
        batch = to_device(given, device)
        if not batch.labelled:
            continue
        answers = [outputs_of(model, batch) for model in (student, control)]
        ours, theirs = (by_task(outputs, batch) for outputs in answers)
        if learnt is None and answers[0].tasks and train is not None:
            learnt = labelled_tasks(train(), answers[0].tasks)
        for task, (logits, labels) in ours.items():
            if labels is None or (learnt is not None and task not in learnt):
                continue
            right = has_classes(logits, labels)
            metric = f"{'top1' if right else 'loss'}{'/' if task else ''}{task}"
            if right:
                scores = [_hits(one, labels)[labels.cpu() >= 0] for one in (logits, theirs[task][0])]
            else:
                seen = batch.task(task) if task else batch
                some = (labels != IGNORED).reshape(len(labels), -1).any(1).nonzero()[:, 0].tolist()
                scores = [_losses(workload, outputs, seen, some) for outputs in answers]
            found.setdefault(metric, []).append(torch.stack(scores))
    return tuple(_gain(metric, torch.cat(scores, dim=1)) for metric, scores in found.items()) or (
        _gain("loss", torch.zeros(2, 0)),
    )


def _gain(metric: str, scores: Tensor) -> Gain:
    """Compute the gain from the scores of student and control, float64 `[2, n]`."""
    of, classes = f" of {metric.partition('/')[2]!r}" if "/" in metric else "", metric.startswith("top1")
    if scores.shape[1] < 2 or not scores.isfinite().all():
        raise StageError(
            f"no gain can be measured on the {scores.shape[1]} labelled samples{of} of the workload's split 'test': it "
            "takes two or more, each with a finite loss; correct the split, or drop 'control'"
        )
    low, high = interval(scores[0] - scores[1], proportions=classes)
    ours, theirs = (float(mean) for mean in scores.mean(1))
    return Gain(
        metric=metric,
        taught=ours,
        control=theirs,
        difference=ours - theirs,
        low=low,
        high=high,
        samples=scores.shape[1],
    )


def interval(differences: Tensor, *, proportions: bool) -> tuple[float, float]:
    """Give the 95 % interval of the mean of paired differences.

    Args:
        differences: `[n]`, float64, n > 1.
        proportions: whether each difference is -1, 0 or 1, between two answers that are right or wrong.

    Returns:
        Its lower and upper end; for proportions both lie within -1 and 1.
    """
    if not proportions:
        half = student_975(len(differences) - 1) * float(differences.std() / len(differences) ** 0.5)
        return float(differences.mean()) - half, float(differences.mean()) + half
    return paired(int((differences > 0).sum()), int((differences < 0).sum()), len(differences))


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Give 1 for each right and 0 for each wrong answer: float64 `[B]` on the CPU."""
    return (logits.argmax(1) == labels).double().cpu()


def _losses(workload: Workload, outputs: Outputs, batch: Batch, rows: Sequence[int]) -> Tensor:
    """Give the hard loss of each of `rows`: float64 `[len(rows)]` on the CPU."""
    losses = []
    for row in rows:
        one = torch.tensor([row])
        mine = Outputs(outputs.logits[one], tasks={name: logits[one] for name, logits in outputs.tasks.items()})
        losses.append(workload.loss(mine, rows_of(batch, one)))
    return torch.stack(losses).double().cpu() if losses else torch.zeros(0, dtype=torch.float64)
