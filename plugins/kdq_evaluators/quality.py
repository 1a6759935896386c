"""Evaluator `quality`: how well the shipped file answers, and how that differs from the float student.

What: for classes, top-1 and top-k accuracy, macro-averaged precision, recall and F1, the lowest recall of a class
    (`recall_worst`), calibration (`ece`, `nll`, `brier`) and `prior_shift`, the share of predictions that would have to
    move to another class for the predicted classes to be as frequent as the labels. Compared with the baseline, the
    float student, on the same samples: `top1_difference`, `f1_difference` and `nll_difference`, the p-value of
    McNemar's test, and `agreement`, the share of samples for which both give the same class; `agreement_teacher`
    compares with the teacher. The file `classes.csv` of the entry has precision, recall and F1 of each class. If labels
    are floating-point numbers, it measures RMSE and MAE instead; if these are all 0 or 1, the outputs are logits of
    labels, and it measures their accuracy and F1. Without labels it measures only the agreement.
Formula: the multiclass formulas of torchmetrics. The calibration error is over 15 bins of equal width of the largest
    probability. The baseline's own report has no difference and no agreement with itself.
Source: intervals (95 %): Wilson 1927 for top-1, top-k and agreement; Bonett and Price 2012, "Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data", for `top1_difference`; Clopper and Pearson
    1934 for each class, since F1 is a function of the share hits / (hits + errors); the infinitesimal jackknife, Efron
    1982, for the others, paired for differences. Calibration error: Guo et al. 2017, arXiv:1706.04599. They cover the
    finite test split only, not the variation between training seeds.
Defaults and where they come from: k = 5, as on ImageNet; without more than k classes there is no top-k. Macro averages
    give every class the same weight, as in scikit-learn.
Costs: one pass of candidate and baseline over the test split, which all evaluators share. Time grows linearly.
Limits: classes need logits `[B, C]`, numbers an output of the labels' size. If a model has several tasks, the metrics
    of the first output have the plain names; those of another output end in its task, as in `top1/<task>`. The
    evaluator leaves out an output whose labels fit neither. A distance that is nearly zero, such as `ece` of a
    calibrated model or `prior_shift`, is overestimated by the noise of the test split; the lower end allows for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batches, Column, Evaluator, Field, Metric, StageError, Subject
from kdq_evaluators.answers import Truth, answers, numbers, output_names, suffixes, truths
from kdq_evaluators.classes import absolute, agreement, relative, said
from kdq_evaluators.classwise import write
from kdq_evaluators.outcomes import keep, of_classes, of_numbers
from kdq_evaluators.regression import numeric

if TYPE_CHECKING:
    import numpy as np


UNLABELLED = "the test split has no labels, so 'quality' measures no more than the agreement with the float student"


class Quality(Evaluator):
    """Accuracy, precision, recall, F1 and calibration of a classifier; errors of numbers."""

    metrics: ClassVar[tuple[str, ...]] = (
        "top1", "topk", "precision", "recall", "f1", "nll", "brier", "ece", "prior_shift", "recall_worst",
        "top1_difference", "top1_mcnemar", "f1_difference", "nll_difference", "agreement", "agreement_teacher",
        "rmse", "mae", "rmse_difference", "mae_difference",
        "label_accuracy", "label_f1", "label_accuracy_difference", "label_f1_difference",
    )  # fmt: skip
    columns: ClassVar[tuple[Column, ...]] = (
        Column(heading="top-1", metric="top1", form="{:.2%}", by_task=True),
        Column(heading="F1", metric="f1", form="{:.2%}"),
        Column(heading="RMSE", metric="rmse", form="{:.4g}", by_task=True),
        Column(heading="labels right", metric="label_accuracy", form="{:.2%}", by_task=True),
    )
    late_imports: ClassVar[tuple[str, ...]] = ("torchmetrics.classification", "torchmetrics.functional.classification")

    k: int = Field(default=5, ge=2, le=10_000, description="`topk`: the label is among the k largest logits")

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        """Metrics in fractions; with the difference from the baseline if the candidate is another file.

        If the models have several tasks, outputs of the same name are compared. An output that the baseline does not
        have is left out.

        Raises:
            StageError: no sample has a class as its label, or every output with such labels has only one logit.
        """
        given = answers(candidate, batches)
        same = candidate.path == baseline.path
        other = given if same else answers(baseline, batches)
        truth, values = (find(baseline, batches, len(other)) for find in (truths, numbers))
        ours, theirs = (_by_name(s, x, len(other)) for s, x in ((candidate, given), (baseline, other)))
        if same:
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
        teachers = self._teacher(candidate, batches, len(other))
        found: list[Metric] = []
        outcomes: dict[str, np.ndarray] = {}
        for name, suffix, known, number in zip(theirs, suffixes(baseline, len(other)), truth, values, strict=True):
            if number is not None and name in ours:
                found += _named(_numeric(ours[name], theirs[name], number), suffix)
                outcomes |= _suffixed(of_numbers(ours[name][number.rows], number.classes), suffix)
            if known is None or name not in ours or theirs[name].shape[1:] == (1,):
                continue
            one = said(ours[name], known.rows, known.classes, self.k)
            metrics = absolute(one, self.k)
            if not same:
                metrics += relative(one, said(theirs[name], known.rows, known.classes, self.k))
            if name in teachers and teachers[name].shape == ours[name].shape:
                metrics += (agreement("agreement_teacher", one.classes, teachers[name].argmax(1)[known.rows]),)
            found += _named(metrics, suffix)
            write(candidate, one, list(theirs).index(name))
            outcomes |= _suffixed(of_classes(one.classes, known.classes), suffix)
        keep(candidate, outcomes)
        return tuple(found)

    def _teacher(self, candidate: Subject, batches: Batches, count: int) -> dict[str, np.ndarray]:
        """Outputs of the teacher's file by name; empty for the teacher itself, or without one."""
        teacher = candidate.beside.get("teacher")
        if teacher is None or teacher.path == candidate.path:
            return {}
        return _by_name(teacher, answers(teacher, batches), count)


def _numeric(ours: np.ndarray, theirs: np.ndarray, number: Truth) -> tuple[Metric, ...]:
    """Metrics of labels that are numbers; with differences if `theirs` is another array."""
    return numeric(ours[number.rows], number.classes, None if ours is theirs else theirs[number.rows])


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
            found += _named(_numeric(ours[name], others, number), suffix)
        elif number is None and name in ours and others.ndim == 2 and others.shape[1] > 1:
            if ours is theirs:
                return ()
            alike = agreement("agreement", ours[name].argmax(1), others.argmax(1))
            found += _named([alike.model_copy(update={"note": UNLABELLED})], suffix)
    if not found:
        raise StageError(
            "evaluator 'quality' compares with labels, but the test split has none that fit an output; give the "
            "workload labels, or leave 'quality' out of 'evaluate'"
        )
    return tuple(found)


def _by_name(subject: Subject, given: tuple[np.ndarray, ...], count: int) -> dict[str, np.ndarray]:
    """Outputs by name if the baseline has several (`count`); else the first output under the name ""."""
    return dict(zip(output_names(subject), given, strict=True)) if count > 1 else {"": given[0]}
