"""Distiller `regression-kd`: the student's numbers, such as ratings or coordinates, follow the teacher's.

What: squared or Huber difference between the numbers that student and teacher give, beside the workload's own loss on
    hard labels.
Formula: L = alpha * mean over samples and numbers of h(z_s - z_t) + (1 - alpha) * L_hard, with h(x) = x^2. With a
    `delta` d it is Huber's h(x) = x^2 / 2 for |x| <= d, and d * (|x| - d / 2) beyond.
Source: Chen et al. 2017, "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS, take a
    squared difference of regressed numbers with a bound from the labels. Saputra et al. 2019, "Distilling Knowledge
    From a Deep Pose Regression Network", arXiv:1908.00858, compare such losses; this one is their plain imitation.
    Huber 1964, "Robust Estimation of a Location Parameter".
Defaults and where they come from: the square, and alpha 0.5, an equal share, are our own.
Costs: one pass over the outputs in float32, and one wait for the device to check that the teacher is finite.
Limits: both models give numbers of one unit and scale. The student also learns the teacher's mistakes: if you have
    labels, lower alpha. For classes use `logit-kd`.
"""

from __future__ import annotations

from typing import ClassVar

from kdq_core.api import Batch, Distiller, Field, LossTerms, Outputs, TakenFor
from kdq_distillers.logits import comparable


class RegressionKd(Distiller):
    """Imitation of the teacher's numbers."""

    reads: ClassVar[TakenFor] = "numbers"
    alpha: float = Field(default=0.5, ge=0, le=1, description="weight of the teacher; the labels get 1 - alpha")
    delta: float | None = Field(
        default=None, gt=0, le=1e6, description="difference from which Huber's loss grows linearly; none: the square"
    )

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:  # noqa: ARG002 - the kind's signature
        """Return the soft term `regression`, and `1 - alpha` for the hard loss.

        Args:
            student: numbers `[B]` or `[B, K]`, any floating type.
            teacher: numbers of the same shape; `[B]` and `[B, 1]` count as equal.
            batch: not needed here.

        Raises:
            StageError: the shapes differ, or the teacher's numbers are not finite.
        """
        import torch.nn.functional as F

        ours, theirs = (Outputs(z.logits[:, None] if z.logits.ndim == 1 else z.logits) for z in (student, teacher))
        mine, wanted = comparable("regression-kd", ours, theirs)
        soft = F.mse_loss(mine, wanted) if self.delta is None else F.huber_loss(mine, wanted, delta=self.delta)
        return LossTerms(terms={"regression": self.alpha * soft}, hard_weight=1 - self.alpha)
