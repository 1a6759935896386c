"""Evaluator `transcription`: word and character error rates of a model that writes what it hears or reads.

What: compares the text that the first output gives with that of the labels: word error rate (`wer`), its parts by type
    (`wer_substitutions`, `wer_deletions`, `wer_insertions`), by length of the label's text (`wer_short`, `wer_medium`,
    `wer_long`: thirds of the samples), character error rate (`cer`) and the share of texts without an error (`exact`).
    Compared with the float student on the same samples: `wer_difference` and `cer_difference`.
Formula: edits / words of the labels, summed over all samples; edits are those of the Levenshtein distance. Words are
    divided by spaces. Without `tokens` and `decode`, each token is a word, and there are no characters.
Source: RapidFuzz computes the edits. Intervals (95 %): of a ratio of sums over samples, by the infinitesimal jackknife
    (Efron 1982), paired for differences; Wilson 1927 for `exact`. Samples are independent of each other, words are not.
Defaults and where they come from: `ctc`, greedy, without a language model.
Costs: one run of candidate and baseline over the test split; outputs may differ in length from batch to batch.
Limits: needs `pip install rapidfuzz`. Labels are `Batch.targets`, int64 `[B, L]` of token numbers, filled up with -1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from kdq_core.api import Batches, Column, Field, Metric, StageError, Subject, wilson
from kdq_evaluators.sampled import Sampled, ratio_of
from kdq_evaluators.texts import Texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

KINDS = {"replace": "substitutions", "delete": "deletions", "insert": "insertions"}
LENGTHS = ("short", "medium", "long")


class Transcription(Texts):
    """Word and character error rates."""

    metrics: ClassVar[tuple[str, ...]] = (
        "wer", "wer_substitutions", "wer_deletions", "wer_insertions", "wer_short", "wer_medium", "wer_long", "cer",
        "exact", "wer_difference", "cer_difference",
    )  # fmt: skip
    columns: ClassVar[tuple[Column, ...]] = (
        Column(heading="WER", metric="wer", form="{:.2%}"),
        Column(heading="CER", metric="cer", form="{:.2%}"),
    )

    form: Literal["ctc", "tokens"] = Field(
        default="ctc",
        description="how the first output is read. ctc: logits `[N, T, V]`, of which the largest are taken, repeats "
        "merged and blanks dropped; tokens: token numbers `[N, L]`, or logits `[N, L, V]`, of which the largest are "
        "taken",
    )

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        """Metrics in errors a word; with the difference from the baseline if the candidate is another file.

        Raises:
            StageError: output or labels are no texts, or RapidFuzz is missing.
        """
        wanted = self.wanted(batches)
        ours = self._rates(self.given(candidate, batches), wanted)
        theirs = {} if candidate.path == baseline.path else self._rates(self.given(baseline, batches), wanted)
        right = int((ours["wer"].edits.sum(1) == 0).sum())
        low, high = wilson(right, len(wanted))
        exact = Metric(
            name="exact", value=right / len(wanted), unit="fraction", direction="higher", low=low, high=high,
            samples=len(wanted),
        )  # fmt: skip
        return (
            *(estimate.metric() for estimate in parts(ours["wer"])),
            *(one.all(name).metric() for name, one in ours.items() if name != "wer"),
            exact,
            *(ours[name].all(name).difference(one.all(name)) for name, one in theirs.items()),
        )

    def _rates(self, given: Sequence[str], wanted: Sequence[str]) -> dict[str, Edits]:
        found = {"wer": edits([text.split() for text in given], [text.split() for text in wanted])}
        return found | ({"cer": edits(given, wanted)} if self.spelled else {})


class Edits(NamedTuple):
    """Edits that make the label's text of each given text: int64 `[N, 3]` by type, and the label's length `[N]`."""

    edits: np.ndarray
    lengths: np.ndarray

    def all(self, name: str) -> Sampled:
        """Edits of any type."""
        return ratio_of(name, self.edits.sum(1), self.lengths, "errors a unit")


def parts(one: Edits) -> list[Sampled]:
    """The word error rate, by type of edit, and by thirds of the samples from the shortest label to the longest."""
    import numpy as np

    found = [one.all("wer")]
    found += [
        ratio_of(f"wer_{kind}", one.edits[:, number], one.lengths, "errors a unit")
        for number, kind in enumerate(KINDS.values())
    ]
    order = np.argsort(one.lengths, kind="stable")
    for name, rows in zip(LENGTHS, np.array_split(order, len(LENGTHS)), strict=True):
        if len(rows) and one.lengths[rows].sum():
            found.append(Edits(one.edits[rows], one.lengths[rows]).all(f"wer_{name}"))
    return found


def edits(given: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> Edits:
    """Count edits between sequences of words, or between strings.

    Raises:
        StageError: RapidFuzz is missing, or all labels are empty.
    """
    import numpy as np

    try:
        from rapidfuzz.distance import Levenshtein
    except ModuleNotFoundError as error:
        raise StageError(
            "evaluator 'transcription' counts edits with RapidFuzz, which is not installed: `pip install rapidfuzz`"
        ) from error
    found = np.zeros((len(wanted), len(KINDS)), np.int64)
    for row, (one, other) in enumerate(zip(wanted, given, strict=True)):
        for step in Levenshtein.editops(one, other):
            found[row, list(KINDS).index(step.tag)] += 1
    lengths = np.array([len(one) for one in wanted], np.int64)
    if not lengths.sum():
        raise StageError(
            "evaluator 'transcription' compares with the texts of the labels, but all of them are empty; give the "
            "test split labels"
        )
    return Edits(found, lengths)
