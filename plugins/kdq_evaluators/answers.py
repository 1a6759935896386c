"""Outputs of a shipped file on the test split, and the hard labels to compare them with; evaluators share both."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kdq_core.api import Batches, StageError, Subject

if TYPE_CHECKING:
    import numpy as np


class Truth(NamedTuple):
    """The hard labels of one output.

    Attributes:
        rows: which samples have a label, bool `[N]`; a label below 0, such as -100, counts as missing.
        classes: the classes of those samples, int64 `[M]`.
    """

    rows: np.ndarray
    classes: np.ndarray


def answers(subject: Subject, batches: Batches) -> tuple[np.ndarray, ...]:
    """Run the file in its runtime; gives every output for every sample, each float `[N, ...]`.

    Raises:
        StageError: there is no sample, outputs of two samples differ in shape, or a value is not finite.
    """
    import numpy as np

    from kdq_evaluators.classes import forget
    from kdq_evaluators.sampled import pieces

    outputs = subject.predict(batches)
    for values in outputs:
        axes = tuple(range(1, values.ndim))
        parts = pieces(len(values), max(1, values.size // len(values)))
        wrong = np.concatenate([(~np.isfinite(values[part])).any(axis=axes) for part in parts])
        forget(values)
        if wrong.any():
            raise StageError(why_not_finite(f"{subject.role} model {subject.path.name!r}", wrong, batches))
    return outputs


def why_not_finite(who: str, wrong: np.ndarray, batches: Batches) -> str:
    """Word that a model gives NaN or infinity, and name the first such sample.

    Args:
        who: the model.
        wrong: for which samples, bool `[N]`.
        batches: gives the test split.
    """
    import numpy as np

    numbers = np.concatenate([batch.ids.numpy() for batch in batches()])[wrong]
    said = f"{who} gives NaN or infinity for {len(numbers)} of {len(wrong)} test samples, first for sample {numbers[0]}"
    if 2 * len(numbers) > len(wrong):
        return f"{said}; train it with a lower learning rate or with 'clip_norm'"
    return (
        f"{said}; let the model answer for such a sample, for instance a sentence whose mask is all zero, or drop it "
        "from the data"
    )


def output_names(subject: Subject) -> tuple[str, ...]:
    """Names of the file's outputs, in order; if the model has several tasks, they are the names of the tasks."""
    return tuple(output.name for output in subject.target.signature(subject.path)[1])


def suffixes(subject: Subject, count: int) -> tuple[str, ...]:
    """The suffix of metric names for each of `count` outputs: empty for the first, `/<name>` for every other."""
    return ("", *(f"/{name}" for name in output_names(subject)[1:])) if count > 1 else ("",)


def numbers(subject: Subject, batches: Batches, count: int) -> tuple[Truth | None, ...]:
    """The labels of each of `count` outputs whose labels are floating-point numbers; `Truth.classes` holds these.

    A sample whose label is not finite counts as unlabelled.
    """
    import numpy as np

    given = [(len(batch.ids), {"": batch.targets, **batch.tasks}) for batch in batches()]
    names = output_names(subject) if any(set(labels) - {""} for _, labels in given) else ("",)
    found: list[Truth | None] = []
    for name in (*names, *[None] * count)[:count]:
        parts = [(size, None if name is None else labels.get(name)) for size, labels in given]
        there = [labels for _, labels in parts if labels is not None]
        if not there or not all(labels.is_floating_point() for labels in there):
            found.append(None)
            continue
        known = [labels.isfinite().flatten(1).all(1) if labels.ndim > 1 else labels.isfinite() for labels in there]
        each = iter(known)
        rows = np.concatenate([np.full(n, False) if labels is None else next(each).numpy() for n, labels in parts])
        values = np.concatenate([labels[fine].numpy() for labels, fine in zip(there, known, strict=True)])
        found.append(Truth(rows, values) if rows.any() else None)
    return tuple(found)


def truths(subject: Subject, batches: Batches, count: int) -> tuple[Truth | None, ...]:
    """The hard labels of each of `count` outputs; `None` for an output of which no sample has a class as its label."""
    import numpy as np

    given = [(len(batch.ids), {"": batch.targets, **batch.tasks}) for batch in batches()]
    tasks = any(set(labels) - {""} for _, labels in given)
    names = output_names(subject) if tasks else ("",)
    found: list[Truth | None] = []
    for name in (*names, *[None] * count)[:count]:
        parts = [(size, None if name is None else labels.get(name)) for size, labels in given]
        there = [labels for _, labels in parts if labels is not None]
        if not there or any(labels.ndim != 1 or labels.is_floating_point() for labels in there):
            found.append(None)
            continue
        rows = np.concatenate([np.full(n, False) if labels is None else labels.numpy() >= 0 for n, labels in parts])
        classes = np.concatenate([labels.numpy() for labels in there])
        found.append(Truth(rows, classes[classes >= 0]) if rows.any() else None)
    return tuple(found)
