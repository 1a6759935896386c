"""Workload `goodbooks`: how many stars a reader gives a book.

What: 298,176 ratings of 9,990 books by 2,672 readers, a part of goodbooks-10k, split by the file's own column. Every
    twentieth train rating, in an order by sha256, validates.
Formula: hard loss = mean squared error of the rating. Inputs `user` and `book`: int64 `[B]`, numbers from 0; a number
    without a train rating has an untrained embedding. Output: the rating, float32 `[B, 1]`.
Source: Zajac 2017, goodbooks-10k (CC BY-SA 4.0). Two towers: Yi et al. 2019,
    https://doi.org/10.1145/3298689.3346996; with biases: Koren et al. 2009, https://doi.org/10.1109/MC.2009.263.
Defaults and where they come from: sizes that train in a minute on two CPU cores.
Costs: each process reads the file once, in a second.
Limits: a reader or book that is new needs a new model. The two towers learn ratings; they are not trained to rank.
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

RATINGS = "goodbooks-2672u/ratings_split.csv.gz"
VALIDATES = 20


class Goodbooks(Workload):
    """Ratings of books."""

    student_options: ClassVar[frozenset[str]] = frozenset({"student_size"})

    student_size: int = Field(default=16, ge=2, le=512, description="numbers of an embedding of the student")
    teacher_size: int = Field(default=64, ge=2, le=512, description="numbers of an embedding of the teacher")

    def fingerprint(self) -> str:
        """Return a sha256 of the file's hash and of a mark for how it is read."""
        return hashlib.sha256(f"goodbooks 1: {files.sha256(RATINGS)}".encode()).hexdigest()

    def teacher(self) -> nn.Module:
        """Make two towers, `[B], [B] -> [B, 1]`."""
        from kdq_examples.towers import Towers

        return Towers(*sizes(), self.teacher_size, dropout=0.5)

    def student(self) -> nn.Module:
        """Make two towers, `[B], [B] -> [B, 1]`."""
        from kdq_examples.towers import Towers

        return Towers(*sizes(), self.student_size, dropout=0.3)

    def input_names(self) -> tuple[str, ...]:
        """Name the inputs of the file."""
        return "user", "book"

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        view: View | None = None,  # noqa: ARG002 - the kind's signature
    ) -> Iterator[Batch]:
        """Yield batches of readers `[B]`, books `[B]` and ratings `[B, 1]`; `view` has no effect."""
        import torch

        rows = read()[split]
        for ids in rows_of_batches(split, len(rows), batch_size, seed, epoch):
            user, book, rating = (torch.from_numpy(rows[ids, column]) for column in range(3))
            yield Batch(inputs=(user, book), targets=rating[:, None].float(), ids=torch.from_numpy(ids))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean squared error, in float32.

        Raises:
            StageError: the batch has no ratings.
        """
        import torch.nn.functional as F

        targets = targets_of(batch, "goodbooks", "ratings")
        return F.mse_loss(outputs.logits.float(), targets)


@functools.cache
def read() -> dict[Split, np.ndarray]:
    """Read each split: rows of reader, book and rating, int64 `[N, 3]`."""
    import numpy as np

    given = list(csv.DictReader(io.StringIO(files.content(RATINGS).decode(), newline="")))
    columns = [[int(row[name]) for row in given] for name in ("user_id", "book_id", "rating")]
    users, books = (np.unique(column, return_inverse=True)[1] for column in columns[:2])
    rows = np.stack((users, books, np.array(columns[2])), 1).astype(np.int64)
    test = np.array([row["split"] == "test" for row in given])
    train = np.flatnonzero(~test)
    train = train[np.argsort([hashlib.sha256(f"goodbooks 1:{row}".encode()).digest() for row in train.tolist()])]
    held_out = len(train) // VALIDATES
    return {"train": rows[np.sort(train[held_out:])], "validation": rows[np.sort(train[:held_out])], "test": rows[test]}


def sizes() -> tuple[int, int]:
    """Count readers and books."""
    highest = [rows.max(0) for rows in read().values()]
    return int(max(row[0] for row in highest)) + 1, int(max(row[1] for row in highest)) + 1
