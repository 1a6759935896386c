"""What a model says of each labelled sample of a choice between classes, read in pieces, and the metrics of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from kdq_core.api import Metric, StageError, mcnemar, paired, wilson
from kdq_evaluators.sampled import Sampled, excess, mean_of

if TYPE_CHECKING:
    import numpy as np

PIECE = 4_000_000
"""How many logits are in memory at a time."""
BINS = 15


class Said(NamedTuple):
    """Answers to N labelled samples.

    Attributes:
        truth: the labels, int64 `[N]`.
        classes: the class of the largest logit, int64 `[N]`.
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
    classes, among = np.empty(samples, np.int64), np.empty(samples, bool)
    sure, surprise, brier = (np.empty(samples, np.float32) for _ in range(3))
    done = 0
    for part in pieces(len(logits), count):
        some = torch.from_numpy(logits[part][rows[part]].astype(np.float64))
        at = slice(done, done := done + len(some))
        label = torch.from_numpy(truth[at])[:, None]
        odds = some.log_softmax(1)
        chance = odds.exp()
        classes[at] = some.numpy().argmax(1)
        among[at] = (some.topk(min(k, count), 1).indices == label).any(1)
        sure[at] = chance.amax(1)
        surprise[at] = -odds.gather(1, label)[:, 0]
        brier[at] = chance.square().sum(1) - 2 * chance.gather(1, label)[:, 0] + 1
    return Said(truth, classes, count, among, sure, surprise, brier)


def pieces(samples: int, width: int) -> Iterator[slice]:
    """Yield slices of samples of `width` values each, so that a piece has at most `PIECE` values."""
    size = max(1, PIECE // max(1, width))
    yield from (slice(start, start + size) for start in range(0, samples, size))


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
        macro(one)[2].difference(macro(other)[2]),
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
    import numpy as np
    import torch
    from torchmetrics.functional import classification

    truth, predicted = one.truth, one.classes
    labels, chosen, hits = counts(one)
    there = int(((labels + chosen) > 0).sum())
    weight, hit = len(truth) / there, predicted == truth
    recalls, precisions, f1s = (safely(hits, under) for under in (labels, chosen, (labels + chosen) / 2))
    both = (labels + chosen).astype(np.float64)
    influence = {
        "precision": weight * safely(hit - precisions[predicted], chosen[predicted]),
        "recall": weight * safely(hit - recalls[truth], labels[truth]),
        "f1": weight * (safely(2 * hit - f1s[truth], both[truth]) - safely(f1s[predicted], both[predicted])),
    }
    worth = float((labels > 0).sum() ** 2 / safely(np.ones(one.width), labels).sum())
    functions = {
        "precision": classification.multiclass_precision,
        "recall": classification.multiclass_recall,
        "f1": classification.multiclass_f1_score,
    }
    given = torch.from_numpy(predicted), torch.from_numpy(truth)
    with counting_by_bins():
        values = {n: float(f(*given, num_classes=one.width, average="macro")) for n, f in functions.items()}
    precision, recall, f1 = (Sampled(n, v, influence[n], worth=worth) for n, v in values.items())
    return precision, recall, f1


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

    # torchmetrics sums in float32, which at 10 million samples no longer counts.
    place = np.minimum((one.sure * BINS).astype(np.int64), BINS - 1)
    each = one.sure - (one.classes == one.truth).astype(np.float64)
    gaps = np.bincount(place, each, BINS) / len(each)
    value = float(np.abs(gaps).sum())
    away = np.sign(gaps)[place] * each - value
    return Sampled("ece", value, away, direction="lower", excess=excess(place[:, None], each, BINS) / len(each))


def prior_shift(one: Said) -> Sampled:
    """Total variation distance of the predicted classes from the labels: the share of predictions to move."""
    import numpy as np

    (labels, chosen, _), samples = counts(one), len(one.truth)
    sign, value = np.sign(chosen - labels) / 2, float(np.abs(chosen - labels).sum() / 2 / samples)
    away = sign[one.classes] - sign[one.truth] - value
    places, amounts = np.stack((one.classes, one.truth), 1), np.broadcast_to((0.5, -0.5), (samples, 2))
    far = excess(places, amounts, one.width) / samples
    return Sampled("prior_shift", value, away, direction="lower", excess=far)


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
