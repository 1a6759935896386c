"""Workload `adult`: does a person of the US census of 1994 earn more than 50,000 dollars a year?

What: 48,842 people with eight categories and six numbers. The first 32,561 rows are the original training file; every
    tenth of them validates. The other 16,281 rows are the original test file. Rows of the training file that equal one
    of the test file, or a training row that equals a validation row, are left out.
Formula: hard loss = mean cross entropy. `codes`: int64 `[B, 14]`, each column's category, then each number's bin,
    counted from 1; 0 is a category that the training rows do not have. The columns share one table of embeddings, so
    that each column's codes start where those of the one before it end. `numbers`: float32 `[B, 6]`, each minus the
    mean and divided by the standard deviation of the training rows, clipped to -4..4; capital gain and loss as
    log(1 + x). Bins end at 32 quantiles of the different values in the training rows.
Source: Kohavi 1996; UCI Adult, as coded by PMLB (Olson et al. 2017, https://doi.org/10.1186/s13040-017-0154-4).
Defaults and where they come from: widths that train in a minute on two CPU cores.
Costs: each process reads the file once, in less than a second.
Limits: the class is 1 for at most 50,000 dollars, as PMLB has it; three of four people have it.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batch, Field, Outputs, Split, View, Workload
from kdq_examples import files
from kdq_examples.batching import rows_of_batches, targets_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

TABLE = "pmlb-adult/adult.tsv.gz"
ORIGINAL_TRAIN = 32_561
NUMBERS = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
CATEGORIES = (
    "workclass", "education", "marital-status", "occupation", "relationship", "race", "sex", "native-country",
)  # fmt: skip
BINS, CLASSES, CLIP = 32, 2, 4.0


class Adult(Workload):
    """Rows of a census with two classes."""

    student_options: ClassVar[frozenset[str]] = frozenset({"student_width"})

    student_width: int = Field(default=64, ge=4, le=1024, description="width of the student's hidden layers")
    teacher_width: int = Field(default=256, ge=4, le=1024, description="width of the teacher's hidden layers")

    def fingerprint(self) -> str:
        """Return a sha256 of the file's hash and of a mark for how it is read."""
        return hashlib.sha256(f"adult 1: {files.sha256(TABLE)}".encode()).hexdigest()

    def teacher(self) -> nn.Module:
        """Make an MLP over embeddings of 16 numbers, `[B, 14], [B, 6] -> [B, 2]`."""
        from kdq_examples.table_nets import TableNet

        return TableNet(codes_in(), 16, self.teacher_width, dropout=0.3)

    def student(self) -> nn.Module:
        """Make an MLP over embeddings of 8 numbers, `[B, 14], [B, 6] -> [B, 2]`."""
        from kdq_examples.table_nets import TableNet

        return TableNet(codes_in(), 8, self.student_width, dropout=0.1)

    def input_names(self) -> tuple[str, ...]:
        """Name the inputs of the file."""
        return "codes", "numbers"

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        view: View | None = None,  # noqa: ARG002 - the kind's signature
    ) -> Iterator[Batch]:
        """Yield batches of codes `[B, 14]`, numbers `[B, 6]` and classes `[B]`; `view` has no effect."""
        import torch

        codes, numbers, labels = read()[split]
        for ids in rows_of_batches(split, len(labels), batch_size, seed, epoch):
            inputs = torch.from_numpy(codes[ids]), torch.from_numpy(numbers[ids])
            yield Batch(inputs=inputs, targets=torch.from_numpy(labels[ids]), ids=torch.from_numpy(ids))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean cross entropy, in float32.

        Raises:
            StageError: the batch has no labels.
        """
        import torch.nn.functional as F

        targets = targets_of(batch, "adult")
        return F.cross_entropy(outputs.logits.float(), targets)


def rows() -> dict[Split, list[dict[str, str]]]:
    """Read the rows of each split; no row is in two."""
    table = io.StringIO(files.content(TABLE).decode(), newline="")
    found = list(csv.DictReader(table, delimiter="\t"))
    test = found[ORIGINAL_TRAIN:]
    before = found[: len(found) - len(test)]
    validation, train = before[::10], [row for number, row in enumerate(before) if number % 10]
    seen = {tuple(row.values()) for row in test}
    validation = [row for row in validation if tuple(row.values()) not in seen]
    seen |= {tuple(row.values()) for row in validation}
    return {"train": [row for row in train if tuple(row.values()) not in seen], "validation": validation, "test": test}


@functools.cache
def codes_in() -> int:
    """Count the codes of all columns together."""
    return sum(len(values) + 1 for values in edges().values())


@functools.cache
def edges() -> dict[str, tuple[float, ...]]:
    """Give the categories of each category column, and the upper ends of the bins of each number, from train rows."""
    import numpy as np

    train = rows()["train"]
    found: dict[str, tuple[float, ...]] = {}
    for name in (*CATEGORIES, *NUMBERS):
        values = np.unique([float(row[name]) for row in train])
        if name in NUMBERS and len(values) > BINS:
            values = np.unique(np.quantile(values, np.linspace(0, 1, BINS)))
        found[name] = tuple(values.tolist())
    return found


@functools.cache
def read() -> dict[Split, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Read each split: codes int64 `[N, 14]`, numbers float32 `[N, 6]` and classes int64 `[N]`."""
    import numpy as np

    splits, ends = rows(), edges()
    scale = {name: (column.mean(), column.std() + 1e-9) for name, column in plain(splits["train"]).items()}
    found: dict[Split, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for split, given in splits.items():
        start, codes = 0, []
        for name, values in ends.items():
            column = np.array([float(row[name]) for row in given])
            code = np.searchsorted(values, column).clip(max=len(values) - 1) + 1
            known = (name in NUMBERS) | (np.array(values)[code - 1] == column)
            codes.append(start + np.where(known, code, 0))
            start += len(values) + 1
        numbers = [(x - scale[name][0]) / scale[name][1] for name, x in plain(given).items()]
        found[split] = (
            np.stack(codes, 1).astype(np.int64),
            np.stack(numbers, 1).clip(-CLIP, CLIP).astype(np.float32),
            np.array([int(row["target"]) for row in given], np.int64),
        )
    return found


def plain(given: list[dict[str, str]]) -> dict[str, np.ndarray]:
    """Give the columns of numbers; those of capital as log(1 + x)."""
    import numpy as np

    columns = {name: np.array([float(row[name]) for row in given]) for name in NUMBERS}
    return {name: np.log1p(x) if name.startswith("capital") else x for name, x in columns.items()}
