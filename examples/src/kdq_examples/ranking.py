"""Evaluator `book-ranking`: are the books that a reader liked among the ten that the model puts first?

What: ranks, for each of some readers, all books that the reader did not rate in the training or validation split. A
    book of the test split with at least 4 stars is relevant; every other book is not, unread ones too. `hr_at_10` is
    the share of readers with a relevant book among the first ten, `ndcg_at_10` the mean normalised discounted
    cumulative gain of the first ten.
Formula: torchmetrics' retrieval_hit_rate and retrieval_normalized_dcg with top_k 10. Books of equal rating: the gain is
    the mean over their orders; for the hit rate, the order is that of the sort.
Source: full ranking instead of sampled negatives, which can order models wrongly: Krichene and Rendle 2020,
    "On Sampled Metrics for Item Recommendation", https://doi.org/10.1145/3394486.3403226.
Defaults and where they come from: 500 readers, drawn by sha256, give intervals (95 %) of about 4 points for the hit
    rate: Wilson's for it, the normal interval of a mean for the gain.
Costs: `readers` x 9,990 answers of the file.
Limits: only for the workload `goodbooks`. Readers without a relevant book are left out.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Z95, Batch, Batches, Column, Evaluator, Field, Metric, Subject, wilson

if TYPE_CHECKING:
    import numpy as np

FIRST, LIKED = 10, 4


class BookRanking(Evaluator):
    """Hit rate and discounted gain of the first ten books."""

    metrics: ClassVar[tuple[str, ...]] = ("hr_at_10", "ndcg_at_10")
    columns: ClassVar[tuple[Column, ...]] = (
        Column(heading="HR@10", metric="hr_at_10", form="{:.2%}"),
        Column(heading="NDCG@10", metric="ndcg_at_10", form="{:.4f}"),
    )
    late_imports: ClassVar[tuple[str, ...]] = ("torchmetrics.functional.retrieval",)

    readers: int = Field(default=500, ge=1, le=1_000_000, description="readers to rank the books for")

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return both metrics, each with its interval."""
        import torch
        from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg

        hits, gains = 0, []
        asked = ranked(self.readers)
        for given, (_, books, liked) in zip(candidate.run(lambda: _batches(asked)), asked, strict=True):
            ratings = torch.from_numpy(given[0].reshape(-1))
            relevant = torch.from_numpy(liked)
            assert len(ratings) == len(books)
            hits += int(retrieval_hit_rate(ratings, relevant, top_k=FIRST))
            gains.append(float(retrieval_normalized_dcg(ratings, relevant, top_k=FIRST)))
        count, gain = len(gains), math.fsum(gains) / len(gains)
        spread = math.sqrt(math.fsum((one - gain) ** 2 for one in gains) / max(1, count - 1))
        half, (low, high) = Z95 * spread / math.sqrt(count), wilson(hits, count)
        return (
            Metric(
                name="hr_at_10", value=hits / count, unit="fraction", direction="higher", low=low, high=high,
                samples=count,
            ),
            Metric(
                name="ndcg_at_10", value=gain, unit="fraction", direction="higher", low=max(0.0, gain - half),
                high=gain + half, samples=count,
            ),
        )  # fmt: skip


@functools.cache
def ranked(readers: int) -> tuple[tuple[int, np.ndarray, np.ndarray], ...]:
    """Choose readers: give the number of each, the books to rank, int64 `[N]`, and which it liked, bool `[N]`."""
    import numpy as np

    from kdq_examples.goodbooks import read, sizes

    splits, (_, count) = read(), sizes()
    known = np.concatenate((splits["train"], splits["validation"]))
    relevant = splits["test"][splits["test"][:, 2] >= LIKED]
    users = sorted(set(relevant[:, 0].tolist()), key=lambda one: hashlib.sha256(f"readers 1:{one}".encode()).digest())
    found = []
    for user in users[:readers]:
        books = np.setdiff1d(np.arange(count), known[known[:, 0] == user, 1])
        found.append((user, books, np.isin(books, relevant[relevant[:, 0] == user, 1])))
    return tuple(found)


def _batches(asked: tuple[tuple[int, np.ndarray, np.ndarray], ...]) -> Iterator[Batch]:
    import torch

    for user, books, _ in asked:
        book = torch.from_numpy(books)
        yield Batch(inputs=(torch.full_like(book, user), book), targets=None, ids=torch.arange(len(book)))
