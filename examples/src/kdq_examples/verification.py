"""Evaluator `speaker-verification`: how often is it wrong about whether two pieces of speech have one speaker?

What: every pair of test samples is a trial; it is a true one if both have the same label. The score is the cosine of
    the two vectors. `eer` is the equal-error rate: the rate of wrong acceptances where that of wrong rejections is the
    same.
Formula: torchmetrics' binary_eer over all thresholds.
Source: Martin et al. 1997, "The DET Curve in Assessment of Detection Task Performance".
Defaults and where they come from: no options.
Costs: N * N / 2 cosines.
Limits: trials that share a sample depend on each other, so there is no interval. Vectors must not be negative, as after
    a relu, because torchmetrics takes scores from 0 to 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batches, Column, Evaluator, Metric, StageError, Subject

if TYPE_CHECKING:
    import numpy as np


class SpeakerVerification(Evaluator):
    """Equal-error rate over all pairs of test samples."""

    metrics: ClassVar[tuple[str, ...]] = ("eer",)
    columns: ClassVar[tuple[Column, ...]] = (Column(heading="EER", metric="eer", form="{:.2%}"),)
    late_imports: ClassVar[tuple[str, ...]] = ("torchmetrics.functional.classification",)

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return `eer`.

        Raises:
            StageError: a sample has no label, or all trials are of one kind.
        """
        import torch
        from torchmetrics.functional.classification import binary_eer

        labels = [batch.targets for batch in batches()]
        if any(one is None for one in labels):
            raise StageError(
                "evaluator 'speaker-verification' compares speakers, and a test sample has no label; label them all"
            )
        scores, same = trials(candidate.predict(batches)[0], torch.cat([x for x in labels if x is not None]).numpy())
        if same.all() or not same.any():
            raise StageError(
                "evaluator 'speaker-verification' needs pairs of one speaker and of two, and the test split has only "
                f"{'pairs of one' if same.all() else 'pairs of two'}; give it two samples of each of two speakers"
            )
        rate = float(binary_eer(torch.from_numpy(scores), torch.from_numpy(same).long()))
        return (Metric(name="eer", value=rate, unit="fraction", direction="lower", samples=len(scores)),)


def trials(vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score each pair of vectors `[N, D]`, and say which have one label: `[N * (N - 1) / 2]` each."""
    import numpy as np

    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True).clip(1e-12)
    first, second = np.triu_indices(len(wide), 1)
    return (wide @ wide.T)[first, second].clip(0, 1), labels[first] == labels[second]
