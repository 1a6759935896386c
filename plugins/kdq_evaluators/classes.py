"""What a model says of each labelled sample of a choice between classes, read in pieces, and the metrics of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from kdq_core.api import Metric, StageError, mcnemar, paired, wilson
from kdq_evaluators.sampled import Sampled, excess, filled, mean_of, pieces

if TYPE_CHECKING:
    import numpy as np

BINS = 15


class Said(NamedTuple):
    """Answers to N labelled samples.

    Attributes:
        truth: the labels, int32 `[N]`.
        classes: the class of the largest logit, int32 `[N]`.
        width: number of classes.
        among: whether the label is among the k largest logits, bool `[N]`.
        sure: softmax of the largest logit, float32 `[N]`.
        surprise: -log softmax of the label, float32 `[N]`.
        brier: squared distance of the softmax from the label's unit vector, float32 `[N]`.
    """

    truth: np.ndarray
    classes: np.ndarray
    width: int
    among: np.ndarray
    sure: np.ndarray
    surprise: np.ndarray
    brier: np.ndarray


def said(logits: np.ndarray, rows: np.ndarray, truth: np.ndarray, k: int) -> Said:
    """Read logits `[M, C]` in pieces, at the samples `rows` (bool `[M]`), whose labels are `truth` `[N]`.

    Raises:
        StageError: a label is no class of the output.
    """
    import numpy as np
    import torch

    count, samples = logits.shape[1], len(truth)
    if samples and truth.max() >= count:
        raise StageError(
            f"the test split has the label {truth.max()}, but the output has {count} classes, numbered from 0; correct "
            "the labels, or give the model that many outputs"
        )
    classes, among = np.empty(samples, np.int32), np.empty(samples, bool)
    sure, surprise, brier = (np.empty(samples, np.float32) for _ in range(3))
    done = 0
    for part in pieces(len(logits), count):
        some = torch.from_numpy(logits[part][rows[part]].astype(np.float64))
        at = slice(done, done := done + len(some))
        label = torch.from_numpy(truth[at].astype(np.int64))[:, None]
        odds = some.log_softmax(1)
        chance = odds.exp()
        classes[at] = some.numpy().argmax(1)
        among[at] = (some.topk(min(k, count), 1).indices == label).any(1)
        sure[at] = chance.amax(1)
        surprise[at] = -odds.gather(1, label)[:, 0]
        brier[at] = chance.square().sum(1) - 2 * chance.gather(1, label)[:, 0] + 1
        forget(logits)
    return Said(truth.astype(np.int32), classes, count, among, sure, surprise, brier)


def forget(values: np.ndarray) -> None:
    """Give the memory of a mapped file back, whose pages stay in the system's cache."""
    import mmap

    import numpy as np

    base = values.base if isinstance(values.base, np.memmap) else values
    mapped = getattr(base, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def absolute(one: Said, k: int) -> tuple[Metric, ...]:
    """Metrics of one model."""
    right, samples = one.classes == one.truth, len(one.truth)
    among = (share("topk", int(one.among.sum()), samples),) if one.width > k else ()
    found = (*macro(one), *(estimate(one) for estimate in (nll, brier, ece, prior_shift)))
    return (
        share("top1", int(right.sum()), samples),
        *among,
        *(one.metric() for one in found),
        recall_worst(one),
    )


def relative(one: Said, other: Said) -> tuple[Metric, ...]:
    """Differences of a model from another on the same samples."""
    ours, theirs = one.classes == one.truth, other.classes == other.truth
    gained, lost, samples = int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(one.truth)
    low, high = paired(gained, lost, samples)
    return (
        Metric(
            name="top1_difference", value=(gained - lost) / samples, unit="fraction", direction="higher", low=low,
            high=high, samples=samples,
        ),
        Metric(
            name="top1_mcnemar", value=mcnemar(gained, lost), unit="p-value", direction="neither", samples=samples
        ),
        f1(one).difference(f1(other)),
        nll(one).difference(nll(other)),
        agreement("agreement", one.classes, other.classes),
    )  # fmt: skip


def agreement(name: str, one: np.ndarray, other: np.ndarray) -> Metric:
    """The share of equal classes, both `[N]`."""
    return share(name, int((one == other).sum()), len(one))


def share(name: str, successes: int, samples: int) -> Metric:
    """A share of samples with Wilson's interval."""
    low, high = wilson(successes, samples)
    return Metric(
        name=name, value=successes / samples, unit="fraction", direction="higher", low=low, high=high, samples=samples
    )


def macro(one: Said) -> tuple[Sampled, Sampled, Sampled]:
    """Precision, recall and F1, each the mean over the classes that are predicted or labels."""
    return precision(one), recall(one), f1(one)


def precision(one: Said) -> Sampled:
    """Macro-averaged precision."""
    _, chosen, hits = counts(one)
    return _averaged("precision", one, lambda _, p, hit: safely(hit - safely(hits, chosen)[p], chosen[p]))


def recall(one: Said) -> Sampled:
    """Macro-averaged recall."""
    labels, _, hits = counts(one)
    return _averaged("recall", one, lambda t, _, hit: safely(hit - safely(hits, labels)[t], labels[t]))


def f1(one: Said) -> Sampled:
    """Macro-averaged F1."""
    labels, chosen, hits = counts(one)
    both = labels + chosen
    each = safely(2 * hits, both)
    return _averaged("f1", one, lambda t, p, hit: safely(2 * hit - each[t], both[t]) - safely(each[p], both[p]))


def _averaged(name: str, one: Said, influence: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Sampled:
    """A macro average, as torchmetrics computes it.

    Args:
        name: of the metric.
        one: the answers.
        influence: of samples with labels, predictions and whether both are equal, without the factor samples / classes.
    """
    import numpy as np
    import torch
    from torchmetrics import classification

    labels, chosen, _ = counts(one)
    samples, there = len(one.truth), int(((labels + chosen) > 0).sum())
    kind = {
        "precision": classification.MulticlassPrecision,
        "recall": classification.MulticlassRecall,
        "f1": classification.MulticlassF1Score,
    }[name]
    metric = kind(one.width, average="macro", validate_args=False)
    with counting_by_bins():
        for part in pieces(samples, 8):
            metric.update(*(torch.from_numpy(x[part].astype(np.int64)) for x in (one.classes, one.truth)))
        value = float(metric.compute())

    def each(part: slice) -> np.ndarray:
        truth, predicted = one.truth[part], one.classes[part]
        return samples / there * influence(truth, predicted, truth == predicted)

    worth = float((labels > 0).sum() ** 2 / safely(np.ones(one.width), labels).sum())
    return Sampled(name, value, filled(samples, each), worth=worth)


def counts(one: Said) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each class how often it is a label, how often it is predicted, and how often both, `[C]` each."""
    import numpy as np

    labels, chosen = (np.bincount(x, minlength=one.width) for x in (one.truth, one.classes))
    return labels, chosen, np.bincount(one.truth[one.classes == one.truth], minlength=one.width)


def safely(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """The quotient in float32; 0 where `under` is 0."""
    import numpy as np

    found: np.ndarray = np.zeros(np.shape(over), np.float32)
    np.divide(over, under, out=found, where=under != 0, casting="same_kind")
    return found


def recall_worst(one: Said) -> Metric:
    """The lowest recall of a class. It has no interval: which class is the lowest is chosen by the same samples."""
    import numpy as np

    labels, _, hits = counts(one)
    recalls = np.where(labels > 0, hits / np.maximum(labels, 1), np.inf)
    worst = int(recalls.argmin())
    return Metric(
        name="recall_worst", value=float(recalls[worst]), unit="fraction", direction="higher",
        samples=int(labels[worst]),
    )  # fmt: skip


def nll(one: Said) -> Sampled:
    """Mean negative log-likelihood of the labels, in nats."""
    return mean_of("nll", one.surprise, "nats", "lower")


def brier(one: Said) -> Sampled:
    """Mean squared distance of the probabilities from the labels, from 0 to 2."""
    return mean_of("brier", one.brier, "squared distance", "lower")


def ece(one: Said) -> Sampled:
    """Expected calibration error of the largest probability, over bins of equal width."""
    import numpy as np

    def gaps(part: slice) -> tuple[np.ndarray, np.ndarray]:
        place = np.minimum((one.sure[part] * BINS).astype(np.int64), BINS - 1)
        return place, one.sure[part] - (one.classes[part] == one.truth[part]).astype(np.float64)

    # torchmetrics sums in float32, which at 10 million samples no longer counts.
    samples, sums = len(one.truth), np.zeros(BINS * 2)
    for part in pieces(samples, 8):
        place, each = gaps(part)
        half = np.arange(part.start, part.start + len(place)) % 2
        sums += np.bincount(place * 2 + half, each, BINS * 2)
    halves = sums.reshape(BINS, 2) / samples
    signs, value = np.sign(halves.sum(1)), float(np.abs(halves.sum(1)).sum())

    def away(part: slice) -> np.ndarray:
        place, each = gaps(part)
        found: np.ndarray = signs[place] * each - value
        return found

    return Sampled("ece", value, filled(samples, away), direction="lower", excess=excess(halves))


def prior_shift(one: Said) -> Sampled:
    """Total variation distance of the predicted classes from the labels: the share of predictions to move."""
    import numpy as np

    samples, halves = len(one.truth), np.empty((one.width, 2))
    for half in (0, 1):
        chosen, labels = (np.bincount(x[half::2], minlength=one.width) for x in (one.classes, one.truth))
        halves[:, half] = (chosen - labels) / (2 * samples)
    signs, value = np.sign(halves.sum(1)) / 2, float(np.abs(halves.sum(1)).sum())
    away = filled(samples, lambda part: signs[one.classes[part]] - signs[one.truth[part]] - value)
    return Sampled("prior_shift", value, away, direction="lower", excess=excess(halves))


@contextmanager
def counting_by_bins() -> Iterator[None]:
    """Let torchmetrics count with `torch.bincount`.

    In torch's deterministic mode it compares each of N samples with each of C^2 cells: 14 GB for a thousand classes and
    a thousand samples. Counts of whole numbers on the CPU are the same either way.
    """
    import torch

    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(0)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
