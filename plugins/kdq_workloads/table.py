"""Workload `table`: a model of yours on the columns of a CSV or Parquet file.

What: the inputs are a float32 array `[B, F]` of the numeric columns, in the file's order. If there are columns of text,
    a second input, int64 `[B, K]`, has the numbers of their categories. The column `target` has the labels: text and
    whole numbers are classes, numbered in sorted order; other numbers are values to predict.
Formula: categories and classes are the sorted distinct values of the whole file; the number of a value is its place.
Source: none.
Defaults and where they come from: a tenth of the rows for validation and a tenth for the test, as is common.
Costs: each process reads the file once, with pandas.
Limits: KDQ does not scale the columns, because the file that you ship gets them as they are; let the model do it. A
    missing value is refused, unless `missing` says what stands for it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdq_core.api import Field, RecipeError, StageError
from kdq_workloads.arrays import data_file, digest
from kdq_workloads.samples import ArraySamples, Samples
from kdq_workloads.splits import SPLITS, WHOLE, SplitModels

PARQUET = (".parquet", ".pq")


class Table(SplitModels):
    """Your model on the columns of a CSV or Parquet file."""

    file: str = Field(min_length=1, description="the CSV or Parquet file")
    target: str = Field(min_length=1, description="the column with the labels")
    features: tuple[str, ...] = Field(default=(), description="the columns that the model reads; empty: all others")
    split_column: str | None = Field(
        default=None, description="a column that says train, validation or test for each row; null: KDQ makes splits"
    )
    missing: float | None = Field(default=None, description="the number that stands for a missing value; null: refuse")

    def fingerprint(self) -> str:
        """Sha256 of the file's content, and of the splits; a column that the file lacks is told here, before a run."""
        self._check(_header(str(data_file(self.file)), data_file(self.file).stat().st_mtime_ns))
        return hashlib.sha256((digest(data_file(self.file)) + self.split_text()).encode()).hexdigest()

    def given(self) -> dict[str, Samples]:
        """The rows by the values of `split_column`, or all rows."""
        frame = _frame(str(data_file(self.file)), data_file(self.file).stat().st_mtime_ns)
        self._check(frame.columns)
        samples = ArraySamples(self._inputs(frame), self._labels(frame), self._columns(frame))
        if self.split_column is None:
            return {WHOLE: samples}
        parts = frame[self.split_column]
        found: dict[str, Samples] = {}
        for split in SPLITS:
            rows = (parts == split).to_numpy().nonzero()[0]
            if len(rows):
                others = {name: values[rows] for name, values in samples.others.items()}
                found[split] = ArraySamples([one[rows] for one in samples.inputs], samples.labels[rows], others)
            elif split != "validation":
                raise RecipeError(
                    f"column {self.split_column!r} of {self.file!r} has no row with {split!r}; it must say train, "
                    "validation or test"
                )
        return found

    def _check(self, columns: Iterable[Any]) -> None:
        names = [str(name) for name in columns]
        for column in (self.target, *self.features, *filter(None, [self.split_column])):
            if column not in names:
                raise RecipeError(f"{self.file!r} has no column {column!r}; it has: {', '.join(names)}")

    def _inputs(self, frame: Any) -> list[Any]:
        import numpy as np
        import pandas as pd

        columns = frame[list(self.features) or self._rest(frame)]
        numeric = [name for name in columns if pd.api.types.is_numeric_dtype(columns[name])]
        numbers = columns[numeric].astype("float32")
        empty = [name for name in numeric if numbers[name].isna().any()]
        if empty and self.missing is None:
            raise StageError(
                f"column {empty[0]!r} of {self.file!r} has missing values; fill them, or write a number for them as "
                "'missing' in the options of the workload"
            )
        coded = [pd.factorize(columns[name], sort=True)[0] for name in columns if name not in numeric]
        found = [numbers.fillna(self.missing or 0.0).to_numpy(np.float32)] if numeric else []
        return [*found, *([np.stack(coded, axis=1).astype(np.int64)] if coded else [])]

    def _columns(self, frame: Any) -> dict[str, Any]:
        return {str(name): frame[name].to_numpy() for name in self._rest(frame)}

    def _rest(self, frame: Any) -> list[Any]:
        """The columns beside target and split."""
        return [name for name in frame.columns if name not in (self.target, self.split_column)]

    def _labels(self, frame: Any) -> Any:
        import numpy as np
        import pandas as pd

        labels = frame[self.target]
        if labels.isna().any():
            raise StageError(
                f"column {self.target!r} of {self.file!r}, the target, has missing values; drop those rows"
            )
        if pd.api.types.is_float_dtype(labels):
            return labels.to_numpy(np.float32)
        return pd.factorize(labels, sort=True)[0].astype(np.int64)


@functools.lru_cache(maxsize=2)
def _header(path: str, changed: int) -> tuple[str, ...]:
    """The names of the columns; of a CSV file without reading its rows."""
    import pandas as pd

    columns = None
    if Path(path).suffix not in PARQUET:
        with contextlib.suppress(Exception):  # reading its rows tells what is wrong
            columns = pd.read_csv(path, nrows=0).columns
    return tuple(map(str, _frame(path, changed).columns if columns is None else columns))


@functools.lru_cache(maxsize=2)
def _frame(path: str, _changed: int) -> Any:
    import pandas as pd

    try:
        return pd.read_parquet(path) if Path(path).suffix in PARQUET else pd.read_csv(path)
    except Exception as error:
        raise RecipeError(
            f"{path!r} cannot be read as a table: {type(error).__name__}: {str(error)[:200]}; give a CSV or a Parquet "
            "file"
        ) from None
