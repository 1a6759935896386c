"""Outputs in flat files: one batch in memory at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kdq_core.store.predictions import opened, write_outputs
from kdq_core.store.records import StoredPredictions


def test_batches_are_let_go_once_they_are_written(tmp_path: Path) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    alive = []

    def parts() -> Iterator[tuple[np.ndarray, ...]]:
        for number in range(9):
            values = np.full((4, 2), number, np.float32)
            made.append(weakref.ref(values))
            yield (values,)
            del values
            alive.append(sum(one() is not None for one in made))

    assert write_outputs(parts(), [tmp_path / "x.bin"]) == [("<f4", (36, 2))]
    assert max(alive) <= 1


def test_outputs_without_values_and_of_other_types_come_back(tmp_path: Path) -> None:
    given = (np.empty((3, 0), np.float32), np.arange(3, dtype=np.int64), np.ones((3, 2, 2), np.float16))
    paths = [tmp_path / f"{number}.bin" for number in range(3)]
    forms = write_outputs([given, given], paths)
    for values, path, (dtype, shape) in zip(given, paths, forms, strict=True):
        stored = StoredPredictions(model="m", split="test", output="o", path=path.name, dtype=dtype, shape=shape)
        np.testing.assert_array_equal(opened(tmp_path, stored), np.concatenate([values, values]), strict=True)
