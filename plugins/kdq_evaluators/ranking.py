"""Evaluator `ranking`: are the items that matter among the first that the model proposes?

What: hit rate (`hr_at_k`), normalised discounted cumulative gain (`ndcg_at_k`) and mean reciprocal rank (`mrr`), each a
    mean over queries, such as users. Compared with the float student on the same queries: `hr_difference` and
    `ndcg_difference`.
Formula: torchmetrics' retrieval_hit_rate, retrieval_normalized_dcg and retrieval_reciprocal_rank. An item is relevant
    (gain 1) or not (gain 0). Items of equal score: the gain is the mean over their orders; for the others, the order is
    that of the sort.
Source: Jarvelin and Kekalainen 2002, "Cumulated gain-based evaluation of IR techniques". Rank all items rather than a
    sample of them: Krichene and Rendle 2020, https://doi.org/10.1145/3394486.3403226. Intervals (95 %) over queries:
    Wilson 1927 for the hit rate, Bonett and Price 2012 for its difference, those of a mean for the others, paired for
    the difference.
Defaults and where they come from: k = 10, as is usual for recommendations.
Costs: a fifth of a millisecond a query.
Limits: the first output is one of two forms. `[N, C]`: scores of C items for each of N queries; labels are the one
    relevant item, int64 `[N]`, or values `[N, C]`. `[N]` or `[N, 1]`: the score of one item; labels are values `[N]`,
    and `query` names the input that tells which samples belong together. Queries without a relevant item are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batches, Column, Evaluator, Field, Metric, StageError, Subject, paired, wilson
from kdq_evaluators.answers import answers
from kdq_evaluators.sampled import mean_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from kdq_core.api import Batch


class Ranking(Evaluator):
    """Hit rate and discounted gain of the first k items."""

    metrics: ClassVar[tuple[str, ...]] = ("hr_at_k", "ndcg_at_k", "mrr", "hr_difference", "ndcg_difference")
    columns: ClassVar[tuple[Column, ...]] = (
        Column(heading="HR@k", metric="hr_at_k", form="{:.2%}"),
        Column(heading="NDCG@k", metric="ndcg_at_k", form="{:.4f}"),
    )
    late_imports: ClassVar[tuple[str, ...]] = ("torchmetrics.functional.retrieval",)

    k: int = Field(default=10, ge=1, le=1_000_000, description="how many items are proposed")
    relevant: float = Field(default=1.0, description="an item is relevant if its label is at least this")
    query: str | None = Field(
        default=None,
        min_length=1,
        description="name of the model's input, or of one in `Batch.extra`, that has the number of the query, for "
        "outputs with one score a sample",
    )

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        """Metrics in fractions; with the difference from the baseline if the candidate is another file.

        Raises:
            StageError: output and labels are of neither form, or no item is relevant.
        """
        ours = self._measured(candidate, batches)
        same = candidate.path == baseline.path
        hits, gains, ranks = ours
        right, count = int(hits.sum()), len(hits)
        low, high = wilson(right, count)
        found = (
            Metric(
                name="hr_at_k", value=right / count, unit="fraction", direction="higher", low=low, high=high,
                samples=count,
            ),
            mean_of("ndcg_at_k", gains).metric(),
            mean_of("mrr", ranks).metric(),
        )  # fmt: skip
        return found if same else (*found, *compared(hits, gains, *self._measured(baseline, batches)[:2]))

    def _measured(self, subject: Subject, batches: Batches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hit, gain and reciprocal rank of each query, `[Q]` each."""
        import numpy as np
        import torch
        from torchmetrics.functional.retrieval import (
            retrieval_hit_rate,
            retrieval_normalized_dcg,
            retrieval_reciprocal_rank,
        )

        found = []
        for scores, labels in self._lists(subject, batches):
            relevant = torch.from_numpy(labels >= self.relevant)
            if relevant.any():
                # Places in place of scores: torchmetrics takes no score up to 0 for a reciprocal rank.
                places = np.unique(scores, return_inverse=True)[1].reshape(-1) + 1.0
                asked = torch.from_numpy(places), relevant
                hit = retrieval_hit_rate(*asked, top_k=self.k)
                gain = retrieval_normalized_dcg(*asked, top_k=self.k)
                found.append((float(hit), float(gain), float(retrieval_reciprocal_rank(*asked))))
        if not found:
            raise StageError(
                f"evaluator 'ranking' looks for items whose label is at least {self.relevant:g}, but the test split "
                "has none; lower its option 'relevant', or give such labels"
            )
        hits, gains, ranks = np.array(found).T
        return hits, gains, ranks

    def _lists(self, subject: Subject, batches: Batches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield scores and labels `[C]` of the items of each query."""
        import numpy as np

        scores = answers(subject, batches)[0]
        given = [batch.targets for batch in batches()]
        if any(one is None for one in given):
            raise StageError(
                "evaluator 'ranking' compares with labels, but a test batch has no `targets`; give them, or leave "
                "'ranking' out of 'evaluate'"
            )
        labels = np.concatenate([one.numpy() for one in given if one is not None])
        lists = scores.ndim == 2 and scores.shape[1] > 1
        if lists and labels.ndim == 1 and labels.dtype.kind in "iu":
            for row, item in zip(scores, labels, strict=True):
                yield row, np.where(np.arange(len(row)) == item, np.inf, -np.inf)
        elif lists and labels.shape == scores.shape:
            yield from zip(scores, labels, strict=True)
        elif scores.size == labels.size == len(labels) and self.query is not None:
            queries = np.concatenate([self._queries(subject, batch) for batch in batches()])
            order = np.argsort(queries, kind="stable")
            ends = np.flatnonzero(np.diff(queries[order])) + 1
            for rows in np.split(order, ends):
                yield scores.reshape(-1)[rows], labels.reshape(-1)[rows]
        else:
            hint = ", with its option 'query'" if scores.size == len(labels) else ""
            raise StageError(
                f"evaluator 'ranking' reads scores [N, C] with labels [N] or [N, C], or scores [N] with labels [N] and "
                f"a query each, but the first output of {subject.path.name!r} is {list(scores.shape)} and the labels "
                f"are {list(labels.shape)}; give one of these forms{hint}, or leave 'ranking' out of 'evaluate'"
            )

    def _queries(self, subject: Subject, batch: Batch) -> np.ndarray:
        assert self.query is not None
        names = [one.name for one in subject.target.signature(subject.path)[0]]
        inputs = dict(zip(names, batch.inputs, strict=False)) | dict(batch.extra)
        if self.query not in inputs:
            raise StageError(
                f"evaluator 'ranking' groups samples by the input {self.query!r}, which the batches do not have; they "
                f"have: {', '.join(inputs)}"
            )
        found: np.ndarray = inputs[self.query].numpy().reshape(-1)
        return found


def compared(
    hits: np.ndarray, gains: np.ndarray, other_hits: np.ndarray, other_gains: np.ndarray
) -> tuple[Metric, ...]:
    """The differences from another model on the same queries."""
    gained, lost, count = int((hits > other_hits).sum()), int((hits < other_hits).sum()), len(hits)
    low, high = paired(gained, lost, count)
    ndcg = mean_of("ndcg", gains).difference(mean_of("ndcg", other_gains))
    return (
        Metric(
            name="hr_difference", value=(gained - lost) / count, unit="fraction", direction="higher", low=low,
            high=high, samples=count,
        ),
        ndcg,
    )  # fmt: skip
