"""What the kept predictions tell: where int8 answers differently, how sure the models are, and samples to look at."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kdq_core.plan.view import RunView
from kdq_core.work.samples import blocks, flipped
from kdq_flows.report.charts import Drawn, Series, scatter
from kdq_flows.report.numbers import short
from kdq_flows.report.pictures import Picture, picture

MATRIX, PAIRS, CLASSES, BINS = 12, 12, 10, 10
"""Classes up to which the confusion is a matrix; else the pairs that are listed; classes listed; bins of confidence."""
FEW = 5
"""A bin of fewer samples is not drawn."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of the float student and the int8 file to the labelled samples of the test split.

    Attributes:
        truth: classes `[N]`.
        outputs: logits `[N, C]` by model.
        rows: numbers of the samples in the split.
    """

    truth: np.ndarray
    outputs: Mapping[str, np.ndarray]
    rows: np.ndarray

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.outputs["int8"].shape[1])

    @functools.cache  # noqa: B019 - one object a page
    def sure(self, model: str) -> tuple[np.ndarray, np.ndarray]:
        """The answers of a model, and the probability of each."""
        found = [(x.argmax(1), probabilities(x).max(1)) for x in map(self.outputs[model].__getitem__, self._blocks)]
        return np.concatenate([answer for answer, _ in found]), np.concatenate([likely for _, likely in found])

    @property
    def _blocks(self) -> list[slice]:
        return blocks(len(self.truth))

    def confusion(self, model: str) -> np.ndarray:
        """Counts `[C, C]`: row is the label, column the answer."""
        cells = self.truth * self.classes + self.sure(model)[0]
        return np.bincount(cells, minlength=self.classes**2).reshape(self.classes, self.classes)


@dataclass(frozen=True)
class Sample:
    """A sample to look at."""

    row: int
    kind: str
    pictures: tuple[tuple[str, Picture], ...]
    label: str
    answers: tuple[tuple[str, str, str], ...]


def answers_of(view: RunView) -> Answers | None:
    """The answers by the first output; `None` if predictions or classes were not kept, or do not fit together."""
    labels = view.labels()
    found = {model: view.predictions(model) for model in ("student", "int8")}
    if not labels or not all(found.values()):
        return None
    name = next(iter(labels))
    outputs = {model: given[name] for model, given in found.items() if name in given}
    truth = labels[name]
    fits = len(outputs) == 2 and all(x.ndim == 2 and x.shape[1] > 1 and len(x) == len(truth) for x in outputs.values())
    if not fits or len({x.shape for x in outputs.values()}) > 1:
        return None
    rows = np.flatnonzero((truth >= 0) & (truth < outputs["int8"].shape[1]))
    if len(rows) < len(truth):
        truth, outputs = truth[rows], {model: x[rows] for model, x in outputs.items()}
    return Answers(truth, outputs, rows) if len(rows) else None


def changed_cells(answers: Answers) -> tuple[list[list[tuple[int, float]]], list[tuple[int, int, int]]]:
    """How the confusion of int8 differs from that of the float student.

    Returns:
        For few classes the matrix, each cell with its count and its share of the largest, else nothing; and the pairs
        (label, answer, difference) with the largest differences.
    """
    difference = answers.confusion("int8") - answers.confusion("student")
    most = int(np.abs(difference).max())
    order = np.argsort(-np.abs(difference), axis=None, kind="stable")[:PAIRS]
    places = [divmod(int(cell), answers.classes) for cell in order]
    pairs = [(row, column, int(difference[row, column])) for row, column in places if difference[row, column]]
    if answers.classes > MATRIX or not most:
        return [], pairs
    return [[(int(cell), float(cell) / most) for cell in line] for line in difference], pairs


def changed_classes(answers: Answers) -> list[tuple[int, int, float, float]]:
    """Classes whose recall changed most: class, its samples, recall of the float student and of int8."""
    counts = np.bincount(answers.truth, minlength=answers.classes)
    right = {model: answers.confusion(model).diagonal() for model in ("student", "int8")}
    changed = [int(c) for c in np.argsort(right["int8"] - right["student"], kind="stable")]
    listed = [c for c in changed if counts[c] and right["int8"][c] != right["student"][c]]
    listed = sorted(listed, key=lambda c: -abs(int(right["int8"][c]) - int(right["student"][c])))[:CLASSES]
    recall = {model: right[model] / np.maximum(counts, 1) for model in right}
    return [(c, int(counts[c]), float(recall["student"][c]), float(recall["int8"][c])) for c in listed]


def reliability(answers: Answers, titles: Mapping[str, str], styles: Mapping[str, str]) -> Drawn | None:
    """Share of right answers against confidence, in bins; a model that knows itself lies on the diagonal."""
    series = []
    for model in ("student", "int8"):
        given, sure = answers.sure(model)
        right = given == answers.truth
        bins = np.minimum((sure * BINS).astype(int), BINS - 1)
        points = [
            (float(sure[bins == one].mean()), float(right[bins == one].mean()))
            for one in range(BINS)
            if (bins == one).sum() >= FEW
        ]
        series.append(Series(titles[model], styles[model], points))
    return scatter("Share of right answers by confidence", series, "confidence", (percent, percent), square=True)


def percent(value: float) -> str:
    """A tick in percent."""
    return short(value, "fraction")


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def samples_of(view: RunView, titles: Mapping[str, str]) -> list[Sample]:
    """The samples that the evaluation kept to show, with the models' answers."""
    rows, inputs = view.shown()
    if not rows:
        return []
    labels = next(iter(view.labels().values()), None)
    outputs = {model: next(iter(view.predictions(model).values())) for model in titles if view.predictions(model)}
    classes = labels is not None and all(x.ndim == 2 and x.shape[1] > 1 for x in outputs.values())
    flips = flipped(outputs["student"], outputs["int8"], labels) if classes and labels is not None else {}
    kinds = {row: kind for kind, found in flips.items() for row in found}
    found, texts = [], view.texts()
    for number, row in enumerate(rows):
        shown = tuple((name, picture(values[number])) for name, values in inputs.items())
        if texts and texts[number]:
            shown = (("text", Picture("text", text=texts[number])),)
        told = tuple(
            _answer(titles[model].removesuffix(" student"), x[row], classes=classes) for model, x in outputs.items()
        )
        label = str(int(labels[row])) if classes and labels is not None else ""
        found.append(Sample(row, kinds.get(row, "close" if classes else "changed"), shown, label, told))
    return found


def _answer(title: str, output: np.ndarray, *, classes: bool) -> tuple[str, str, str]:
    if classes:
        likely = probabilities(output)
        return title, str(int(likely.argmax())), f"{100 * float(likely.max()):.0f} %"
    values = " ".join(f"{float(value):.3g}" for value in output.reshape(-1)[:4])
    return title, values + (" ..." if output.size > 4 else ""), ""
