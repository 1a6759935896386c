"""What a shipped file answers on the test split, and what is right; for all evaluators."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kdq_core.api import Batches, StageError, Subject

if TYPE_CHECKING:
    import numpy as np


class Truth(NamedTuple):
    """The hard labels of one output.

    Attributes:
        rows: which samples have one, bool `[N]`; a label below 0, as -100, is none.
        classes: their classes, int64 `[M]`.
    """

    rows: np.ndarray
    classes: np.ndarray


def answers(subject: Subject, batches: Batches) -> tuple[np.ndarray, ...]:
    """Every output of the file for every sample, each float `[N, ...]`, in the runtime that it was written for.

    Raises:
        StageError: there is no sample, samples differ in shape, or an answer is not finite.
    """
    import numpy as np

    outputs = subject.predict(batches)
    for values in outputs:
        wrong = int((~np.isfinite(values)).any(axis=tuple(range(1, values.ndim))).sum())
        if wrong:
            raise StageError(
                f"{subject.role} model {subject.path.name!r} gives NaN or infinity for {wrong} of {len(values)} test "
                "samples; train it with a lower learning rate or with 'clip_norm'"
            )
    return outputs


def output_names(subject: Subject) -> tuple[str, ...]:
    """Names of the file's outputs, in order: those of the tasks, where the model has several."""
    return tuple(output.name for output in subject.target.signature(subject.path)[1])


def suffixes(subject: Subject, count: int) -> tuple[str, ...]:
    """What is put behind a metric's name for each of `count` outputs: of the first nothing, else `/` and its name."""
    return ("", *(f"/{name}" for name in output_names(subject)[1:])) if count > 1 else ("",)


def truths(subject: Subject, batches: Batches, count: int) -> tuple[Truth | None, ...]:
    """Which samples have a class as their label, for each of `count` outputs; `None` where no sample of it has."""
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
