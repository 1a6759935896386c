"""Evaluator `quality`: how well the shipped file answers, and how that differs from the float student.

What: measures top-1 accuracy and macro-averaged precision, recall and F1 on the test split. Compares with the baseline,
    the float student: the difference in top-1, and the share of samples for which both give the same class. If labels
    are floating-point numbers, it measures RMSE and MAE instead; if these are all 0 or 1, the outputs are logits of
    labels, and it measures their accuracy and F1. Without labels it measures only the agreement.
Formula: the multiclass formulas of torchmetrics. The baseline's own report has neither difference nor agreement.
Source: intervals (95 %): Wilson 1927 for top-1 and agreement; Bonett and Price 2012, "Adjusted Wald confidence interval
    for a difference of binomial proportions based on paired data", for the difference; the normal interval of a mean
    for RMSE and MAE. The intervals cover the finite test split only, not the variation between training seeds.
Defaults and where they come from: no options; macro averages give every class the same weight, as in scikit-learn.
Costs: one pass of candidate and baseline over the test split, which all evaluators share.
Limits: classes need logits `[B, C]`, numbers an output of the labels' size. If a model has several tasks, the metrics
    of the first output have the plain names; those of another output end in its task, as in `top1/<task>`. The
    evaluator leaves out an output whose labels fit neither. Precision, recall and F1 have no interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batches, Column, Evaluator, Metric, StageError, Subject, paired, wilson
from kdq_evaluators.answers import Truth, answers, numbers, output_names, suffixes, truths
from kdq_evaluators.outcomes import keep, of_classes, of_numbers
from kdq_evaluators.regression import numeric

if TYPE_CHECKING:
    import numpy as np


class Quality(Evaluator):
    """Accuracy, precision, recall and F1 of a classifier."""

    metrics: ClassVar[tuple[str, ...]] = (
        "top1", "precision", "recall", "f1", "top1_difference", "agreement", "rmse", "mae",
        "label_accuracy", "label_f1",
    )  # fmt: skip
    columns: ClassVar[tuple[Column, ...]] = (
        Column(heading="top-1", metric="top1", form="{:.2%}", by_task=True),
        Column(heading="F1", metric="f1", form="{:.2%}"),
        Column(heading="RMSE", metric="rmse", form="{:.4g}", by_task=True),
        Column(heading="labels right", metric="label_accuracy", form="{:.2%}", by_task=True),
    )
    late_imports: ClassVar[tuple[str, ...]] = ("torchmetrics.functional.classification",)

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        """Metrics in fractions; with the difference from the baseline if the candidate is another file.

        If the models have several tasks, outputs of the same name are compared. An output that the baseline does not
        have is left out.

        Raises:
            StageError: no sample has a class as its label, or every output with such labels has only one logit.
        """
        given = answers(candidate, batches)
        other = given if candidate.path == baseline.path else answers(baseline, batches)
        truth, values = (find(baseline, batches, len(other)) for find in (truths, numbers))
        ours, theirs = (_by_name(s, x, len(other)) for s, x in ((candidate, given), (baseline, other)))
        if candidate.path == baseline.path:
            ours = theirs
        if not any(truth):
            found_numbers = _without_classes(ours, theirs, suffixes(baseline, len(other)), values)
            keep(candidate, _outcomes_of_numbers(ours, theirs, suffixes(baseline, len(other)), values))
            return found_numbers
        if not any(values) and all(
            known is None or logits.shape[1:] == (1,) for known, logits in zip(truth, other, strict=True)
        ):
            raise StageError(
                "evaluator 'quality' asks which class has the largest logit, but the test split's labels are of "
                "outputs with one logit a sample; give a logit to each class, or leave 'quality' out of 'evaluate'"
            )
        found: list[Metric] = []
        outcomes: dict[str, np.ndarray] = {}
        for name, suffix, known, number in zip(theirs, suffixes(baseline, len(other)), truth, values, strict=True):
            if number is not None and name in ours:
                found += _named(numeric(ours[name][number.rows], number.classes), suffix)
                outcomes |= _suffixed(of_numbers(ours[name][number.rows], number.classes), suffix)
            if known is None or name not in ours or theirs[name].shape[1:] == (1,):
                continue
            classes = ours[name].argmax(1)[known.rows]
            metrics = absolute(classes, known.classes, ours[name].shape[1])
            if candidate.path != baseline.path:
                metrics += relative(classes, theirs[name].argmax(1)[known.rows], known.classes)
            found += _named(metrics, suffix)
            outcomes |= _suffixed(of_classes(classes, known.classes), suffix)
        keep(candidate, outcomes)
        return tuple(found)


def _named(metrics: Iterable[Metric], suffix: str) -> list[Metric]:
    return [metric.model_copy(update={"name": metric.name + suffix}) for metric in metrics]


def _suffixed(outcomes: Mapping[str, np.ndarray], suffix: str) -> dict[str, np.ndarray]:
    return {name + suffix: values for name, values in outcomes.items()}


def _outcomes_of_numbers(
    ours: Mapping[str, np.ndarray], names: Iterable[str], suffixes: Sequence[str], values: Sequence[Truth | None]
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, suffix, number in zip(names, suffixes, values, strict=True):
        if number is not None and name in ours:
            found |= _suffixed(of_numbers(ours[name][number.rows], number.classes), suffix)
    return found


def _without_classes(
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    suffixes: Sequence[str],
    values: Sequence[Truth | None],
) -> tuple[Metric, ...]:
    """Metrics of a test split on which no label is a class: those of numbers, or else the agreement of both files.

    Raises:
        StageError: there is nothing to compare with.
    """
    found: list[Metric] = []
    for (name, others), suffix, number in zip(theirs.items(), suffixes, values, strict=True):
        if number is not None and name in ours:
            found += _named(numeric(ours[name][number.rows], number.classes), suffix)
        elif number is None and name in ours and others.ndim == 2 and others.shape[1] > 1:
            if ours is theirs:
                return ()
            same, samples = int((ours[name].argmax(1) == others.argmax(1)).sum()), len(others)
            low, high = wilson(same, samples)
            agreement = Metric(
                name="agreement", value=same / samples, unit="fraction", direction="higher", low=low, high=high,
                samples=samples,
            )  # fmt: skip
            found += _named([agreement], suffix)
    if not found:
        raise StageError(
            "evaluator 'quality' compares with labels, but the test split has none that fit an output; give the "
            "workload labels, or leave 'quality' out of 'evaluate'"
        )
    return tuple(found)


def _by_name(subject: Subject, given: tuple[np.ndarray, ...], count: int) -> dict[str, np.ndarray]:
    """Outputs by name if the baseline has several (`count`); else the first output under the name ""."""
    return dict(zip(output_names(subject), given, strict=True)) if count > 1 else {"": given[0]}


def absolute(candidate: np.ndarray, truth: np.ndarray, count: int) -> tuple[Metric, ...]:
    """`top1`, `precision`, `recall` and `f1` of classes `[N]` against labels `[N]`, of `count` classes."""
    import torch
    from torchmetrics.functional import classification

    predicted, targets = torch.from_numpy(candidate), torch.from_numpy(truth)
    right, samples = int((predicted == targets).sum()), len(truth)
    low, high = wilson(right, samples)
    with counting_by_bins():
        macro = {
            name: float(function(predicted, targets, num_classes=count, average="macro"))
            for name, function in (
                ("precision", classification.multiclass_precision),
                ("recall", classification.multiclass_recall),
                ("f1", classification.multiclass_f1_score),
            )
        }
    return (
        Metric(
            name="top1",
            value=right / samples,
            unit="fraction",
            direction="higher",
            low=low,
            high=high,
            samples=samples,
        ),
        *(
            Metric(name=name, value=value, unit="fraction", direction="higher", samples=samples)
            for name, value in macro.items()
        ),
    )


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


def relative(candidate: np.ndarray, baseline: np.ndarray, truth: np.ndarray) -> tuple[Metric, ...]:
    """`top1_difference` and `agreement` of classes `[N]` with the baseline's `[N]`."""
    ours, theirs = candidate == truth, baseline == truth
    gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    same, samples = int((candidate == baseline).sum()), len(truth)
    rows = (
        ("top1_difference", (gained - lost) / samples, paired(gained, lost, samples)),
        ("agreement", same / samples, wilson(same, samples)),
    )
    return tuple(
        Metric(name=name, value=value, unit="fraction", direction="higher", low=low, high=high, samples=samples)
        for name, value, (low, high) in rows
    )
