"""Evaluator `translation`: BLEU and chrF of a model that writes texts.

What: compares the text that the first output gives with that of the labels: corpus BLEU with up to four words (`bleu`),
    chrF with up to six characters and recall twice as important (`chrf`), and the share of equal texts (`exact`).
    Compared with the float student on the same samples: `bleu_difference` and `chrf_difference`.
Formula: torchmetrics' BLEUScore, without smoothing, and CHRFScore without words. Words are divided by spaces. Without
    `tokens` and `decode`, each token is a word, and there is no chrF.
Source: Papineni et al. 2002, "BLEU"; Popovic 2015, "chrF". Intervals (95 %): the jackknife over 20 groups of samples
    (Kott 2001), paired for differences; Wilson 1927 for `exact`.
Defaults and where they come from: those of the papers.
Costs: one run of candidate and baseline over the test split; outputs may differ in length from batch to batch.
Limits: one reference a sample: `Batch.targets`, int64 `[B, L]` of token numbers, filled up with -1. The model gives
    tokens itself: the evaluator does not search for the best translation. torchmetrics does not tokenise as sacreBLEU
    does; compare within a report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kdq_core.api import Batches, Column, Metric, Subject, wilson
from kdq_evaluators.sampled import Sampled, grouped, groups_of
from kdq_evaluators.texts import Texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Translation(Texts):
    """BLEU and chrF."""

    metrics: ClassVar[tuple[str, ...]] = ("bleu", "chrf", "exact", "bleu_difference", "chrf_difference")
    columns: ClassVar[tuple[Column, ...]] = (
        Column(heading="BLEU", metric="bleu", form="{:.2%}"),
        Column(heading="chrF", metric="chrf", form="{:.2%}"),
    )
    late_imports: ClassVar[tuple[str, ...]] = ("torchmetrics.text",)

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        """Metrics between 0 and 1; with the difference from the baseline if the candidate is another file.

        Raises:
            StageError: output or labels are no texts.
        """
        wanted = self.wanted(batches)
        given = self.given(candidate, batches)
        ours = self._scores(given, wanted)
        theirs = [] if candidate.path == baseline.path else self._scores(self.given(baseline, batches), wanted)
        right = sum(one == other for one, other in zip(given, wanted, strict=True))
        low, high = wilson(right, len(wanted))
        return (
            *(one.metric() for one in ours),
            Metric(
                name="exact", value=right / len(wanted), unit="fraction", direction="higher", low=low, high=high,
                samples=len(wanted),
            ),
            *(one.difference(other) for one, other in zip(ours, theirs, strict=False)),
        )  # fmt: skip

    def _scores(self, given: Sequence[str], wanted: Sequence[str]) -> list[Sampled]:
        from torchmetrics.text import BLEUScore, CHRFScore

        found = [corpus("bleu", BLEUScore, given, wanted)]
        return found + ([corpus("chrf", lambda: CHRFScore(n_word_order=0), given, wanted)] if self.spelled else [])


def corpus(name: str, make: Callable[[], Any], given: Sequence[str], wanted: Sequence[str]) -> Sampled:
    """A metric of torchmetrics whose states are sums over samples, with and without each group of samples."""
    import numpy as np

    groups = groups_of(len(wanted))
    parts = []
    for group in range(int(groups.max()) + 1):
        rows = np.flatnonzero(groups == group).tolist()
        part = make()
        part.update([given[row] for row in rows], [[wanted[row]] for row in rows])
        parts.append(dict(part.metric_state))
    whole = {state: sum(part[state] for part in parts) for state in parts[0]}
    without = [_computed(make(), {state: whole[state] - part[state] for state in whole}) for part in parts]
    return grouped(name, _computed(make(), whole), np.array(without), len(wanted))


def _computed(metric: Any, states: dict[str, Any]) -> float:
    for state, value in states.items():
        setattr(metric, state, value)
    metric._update_count = 1  # torchmetrics warns of a metric that was never updated
    return float(metric.compute())
