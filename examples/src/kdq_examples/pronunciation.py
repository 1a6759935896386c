"""Evaluator `phoneme-errors`: how well does the file pronounce words when it reads its own phonemes?

What: decodes each test word greedily: the file reads the phonemes that it has given so far, until the end or 20 of
    them. `phoneme_error_rate` compares with the dictionary. `phoneme_error_rate_to_float` compares with what the float
    student's file decodes, and `same_words` is the share of words for which both decode the same.
Formula: edits (insertions, deletions, substitutions) / phonemes of the reference, summed over the words: torchmetrics'
    word_error_rate over phonemes in place of words. Stress counts: AH0 is not AH1.
Source: Yao and Zweig 2015, "Sequence-to-Sequence Neural Net Models for Grapheme-to-Phoneme Conversion",
    https://arxiv.org/abs/1506.00196.
Defaults and where they come from: 20 phonemes, as in g2p-en.
Costs: 20 passes of candidate and baseline over the test split, of growing length.
Limits: only for the workload `g2p`. Error rates have no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batches, Column, Evaluator, Metric, Subject, wilson
from kdq_examples.g2p import END, NAMES, PHONEMES, START

if TYPE_CHECKING:
    import numpy as np


class PhonemeErrors(Evaluator):
    """Phoneme error rates of free-running decoding."""

    metrics: ClassVar[tuple[str, ...]] = ("phoneme_error_rate", "phoneme_error_rate_to_float", "same_words")
    columns: ClassVar[tuple[Column, ...]] = (
        Column(heading="PER", metric="phoneme_error_rate", form="{:.2%}"),
        Column(heading="PER to float", metric="phoneme_error_rate_to_float", form="{:.2%}"),
    )
    late_imports: ClassVar[tuple[str, ...]] = ("torchmetrics.functional.text",)

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        """Return `phoneme_error_rate`, and for another file than the baseline also the two others."""
        truth = [text(row) for batch in batches() if batch.targets is not None for row in batch.targets.tolist()]
        given = spoken(candidate, batches)
        found = [rate("phoneme_error_rate", given, truth)]
        if candidate.path != baseline.path:
            floats = spoken(baseline, batches)
            same = sum(ours == theirs for ours, theirs in zip(given, floats, strict=True))
            low, high = wilson(same, len(given))
            found += [
                rate("phoneme_error_rate_to_float", given, floats),
                Metric(
                    name="same_words", value=same / len(given), unit="fraction", direction="higher", low=low, high=high,
                    samples=len(given),
                ),
            ]  # fmt: skip
        return tuple(found)


def rate(name: str, given: Sequence[str], truth: Sequence[str]) -> Metric:
    """Make the metric of an error rate over words whose phonemes are separated by spaces."""
    from torchmetrics.functional.text import word_error_rate

    value = float(word_error_rate(list(given), list(truth)))
    return Metric(name=name, value=value, unit="fraction", direction="lower", samples=len(truth))


def text(numbers: Sequence[int]) -> str:
    """Name the phonemes up to the end."""
    spoken = list(numbers)
    return " ".join(NAMES[one] for one in (spoken[: spoken.index(END)] if END in spoken else spoken))


def spoken(subject: Subject, batches: Batches) -> list[str]:
    """Decode all words of the test split."""
    session = subject.target.session(subject.path, threads=subject.threads)
    return [
        text(row)
        for batch in batches()
        for row in decoded(lambda *inputs: session.run(inputs)[0], batch.inputs[0].numpy()).tolist()
    ]


def decoded(run: Callable[[np.ndarray, np.ndarray], np.ndarray], letters: np.ndarray) -> np.ndarray:
    """Decode words greedily.

    Args:
        run: gives logits `[B, T, 74]` of letters `[B, L]` and phonemes `[B, T]`.
        letters: int64 `[B, L]`.

    Returns:
        Phonemes int64 `[B, T]`; what follows an end has no meaning.
    """
    import numpy as np

    given = np.full((len(letters), 1), START, np.int64)
    for _ in range(PHONEMES):
        following = run(letters, given)[:, -1].argmax(1)
        given = np.concatenate((given, following[:, None].astype(np.int64)), 1)
        if (given == END).any(1).all():
            break
    return given[:, 1:]
