"""What a shipped file answers on the whole test split, and intervals of proportions; shared by the evaluators."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdq_core.api import Z95, Batches, StageError, Subject

if TYPE_CHECKING:
    import numpy as np


def answers(subject: Subject, batches: Batches) -> np.ndarray:
    """First output of the file for every sample, float `[N, C]`, in the runtime that it was written for.

    Raises:
        StageError: there is no sample, or an answer is not finite.
    """
    return all_answers(subject, batches)[0]


def all_answers(subject: Subject, batches: Batches) -> tuple[np.ndarray, ...]:
    """Every output of the file for every sample, each float `[N, ...]`, in the runtime that it was written for.

    Raises:
        StageError: there is no sample, or an answer is not finite.
    """
    import numpy as np

    session = subject.target.session(subject.path, threads=subject.threads)
    parts = [session.run(tuple(x.numpy() for x in batch.inputs)) for batch in batches()]
    if not parts:
        raise StageError("the evaluators need the workload's test split, which is empty; give it samples")
    outputs = tuple(np.concatenate(values) for values in zip(*parts, strict=True))
    for values in outputs:
        wrong = int((~np.isfinite(values)).any(axis=tuple(range(1, values.ndim))).sum())
        if wrong:
            raise StageError(
                f"{subject.role} model {subject.path.name!r} gives NaN or infinity for {wrong} of {len(values)} test "
                "samples; train it with a lower learning rate or with 'clip_norm'"
            )
    return outputs


def labels(batches: Batches) -> np.ndarray:
    """Hard labels of the test split, int64 `[N]`.

    Raises:
        StageError: a batch has none.
    """
    import numpy as np

    parts = []
    for batch in batches():
        if batch.targets is None:
            raise StageError(
                "evaluator 'quality' compares with hard labels, but the test split has none; "
                "give the workload labels, or leave 'quality' out of 'evaluate'"
            )
        parts.append(batch.targets.numpy())
    return np.concatenate(parts)


def wilson(successes: int, samples: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927)."""
    share, z2 = successes / samples, Z95**2
    middle = share + z2 / (2 * samples)
    half = Z95 * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    scale = 1 + z2 / samples
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
