"""The gain of a teacher: how much better its student is than one that was trained without it, the control.

What: the control has the start, seeds, batches, steps and phases of the student, and `hard_loss` alone.
    Both answer every labelled sample of the test split, in PyTorch; the gain is the mean difference.
Formula: d_i is +1 where only the student is right, -1 where only the control is, else 0; without classes it is
    the difference of the hard losses of sample i. The 95 % interval is m +- t s / sqrt(n), with mean m and standard
    deviation s of the d_i: of differences of losses t is the quantile of Student's t, of right and wrong answers 1.96,
    and a +1 and a -1 join the d_i first, so that few disagreements show no gain. Each of several tasks has a gain of
    its own.
Source: those two are the adjustment of Bonett and Price 2012, "Adjusted Wald Confidence Interval for a Difference of
    Binomial Proportions Based on Paired Data", Journal of Educational and Behavioral Statistics 37(4).
Limits: the interval is of the test samples. Both students are of one seed: another seed would give another pair, and
    how far pairs scatter is not in it.
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
from kdq_core.training.fit import rows_of, to_device
from kdq_core.training.losses import by_task, has_classes, labelled, labelled_tasks, outputs_of

IGNORED = -100
"""The label of what has none, as `torch.nn.functional.cross_entropy` has it; a sample of these alone is left out."""


def check_labels(train: Iterable[Batch], test: Iterable[Batch]) -> None:
    """Refuse a control that has nothing to learn from, or to be measured on.

    Raises:
        StageError: a split has no label at all.
    """
    for split, batches in (("train", train), ("test", test)):
        if not labelled(batches):
            raise StageError(
                f"'control' asks for a student without the teacher, but no batch of the workload's split {split!r} has "
                "labels, which are all that it would have; label some, or drop 'control'"
            )


def remembered(device: torch.device) -> Callable[[], None]:
    """Remember torch's random generators; the function given sets them back, so that a second fit draws the same."""
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
    """What `student` has over `control` on the labelled samples of the test split; both in eval mode on `device`.

    A task that has no label in the batches of `train` is left out: the control could not learn it.

    Returns:
        One, or one of each task that has labels.

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
    """From the scores of student and control, float64 `[2, n]`."""
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
    """The 95 % interval of the mean of paired differences.

    Args:
        differences: `[n]`, float64, n > 1.
        proportions: each is -1, 0 or 1, a difference between two right or wrong answers.

    Returns:
        Its lower and upper end; of a difference of proportions within -1 and 1.
    """
    if not proportions:
        half = student_975(len(differences) - 1) * float(differences.std() / len(differences) ** 0.5)
        return float(differences.mean()) - half, float(differences.mean()) + half
    return paired(int((differences > 0).sum()), int((differences < 0).sum()), len(differences))


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each sample 1 for a right and 0 for a wrong answer: float64 `[B]` on the CPU."""
    return (logits.argmax(1) == labels).double().cpu()


def _losses(workload: Workload, outputs: Outputs, batch: Batch, rows: Sequence[int]) -> Tensor:
    """The hard loss of each of `rows`: float64, as many, on the CPU."""
    losses = []
    for row in rows:
        one = torch.tensor([row])
        mine = Outputs(outputs.logits[one], tasks={name: logits[one] for name, logits in outputs.tasks.items()})
        losses.append(workload.loss(mine, rows_of(batch, one)))
    return torch.stack(losses).double().cpu() if losses else torch.zeros(0, dtype=torch.float64)
