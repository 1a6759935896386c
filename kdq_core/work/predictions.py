"""Predictions of a file over a split: KDQ computes them when an evaluator first asks, and keeps them in the entry.

If a stage is killed, KDQ drops its draft with the predictions in it, and the next try computes them anew.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdq_core.plugins.kinds import Subject
from kdq_core.store.predictions import opened, write_outputs
from kdq_core.store.records import StoredPredictions
from kdq_core.tensors import Batches, Split

FOLDER = "predictions"


class KeptPredictions:
    """The predictions of one file over one split, for `Subject.predict`."""

    def __init__(self, subject: Subject, batches: Batches, draft: Path, split: Split = "test") -> None:
        """Keep below `draft` the predictions of `subject` over `batches`, which are the batches of `split`."""
        self.stored: tuple[StoredPredictions, ...] = ()
        self._subject, self._batches, self._draft, self._split = subject, batches, draft, split
        self._outputs: tuple[np.ndarray, ...] = ()

    def __call__(self, subject: Subject, batches: Batches) -> tuple[np.ndarray, ...] | None:
        """Each output `[N, ...]`, or `None` for other batches or another file."""
        if batches is not self._batches or _file_of(subject) != _file_of(self._subject):
            return None
        if not self.stored:
            self.stored = self._computed()
            self._outputs = tuple(opened(self._draft, one) for one in self.stored)
        return self._outputs

    def _computed(self) -> tuple[StoredPredictions, ...]:
        subject, split = self._subject, self._split
        names = [output.name for output in subject.target.signature(subject.path)[1]]
        paths = [f"{FOLDER}/{subject.role}-{split}-{number}.bin" for number in range(len(names))]
        (self._draft / FOLDER).mkdir(exist_ok=True)
        forms = write_outputs(subject.run_alike(self._batches), [self._draft / path for path in paths])
        return tuple(
            StoredPredictions(model=subject.role, split=split, output=name, path=path, dtype=dtype, shape=shape)
            for name, path, (dtype, shape) in zip(names, paths, forms, strict=True)
        )


def _file_of(subject: Subject) -> tuple[object, ...]:
    return subject.path, subject.target, subject.threads
