"""Distiller `hard-label`: the teacher's answer is one more label.

What: cross entropy of the student with the class that the teacher finds likeliest, beside the workload's own loss on
    the true labels.
Formula: L = alpha * mean over the batch of -log softmax(z_s)[argmax z_t] + (1 - alpha) * L_hard.
Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention",
    arXiv:2012.12877, section "hard-label distillation".
Defaults and where they come from: alpha 0.5 and no temperature, as in the paper.
Costs: one log-softmax of `[B, C]` in float32, and one wait for the device to check that the teacher is finite.
Limits: single-label classification, and the same classes in the same order in teacher and student. The student does not
    learn how sure the teacher is, nor which class comes second. Equal models do not give zero: the loss is then -log of
    the probability of their own answer, which is zero only for a student that is certain. The class says so
    (`zero_for_equal_models = False`). Subtracting the teacher's own loss would change no gradient, and would make the
    logged term negative where the student is surer than the teacher. Of several equally likely classes the first
    counts.
"""

from __future__ import annotations

from typing import ClassVar

from kdq_core.api import Batch, Distiller, Field, LossTerms, Outputs
from kdq_distillers.logits import comparable


class HardLabel(Distiller):
    """The teacher's answer as a label (Touvron et al. 2021)."""

    zero_for_equal_models: ClassVar[bool] = False
    alpha: float = Field(default=0.5, ge=0, le=1, description="weight of the teacher; the labels get 1 - alpha")

    def takes_top_k(self) -> bool:
        """True, because the likeliest class is among the top k."""
        return True

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:  # noqa: ARG002 - the kind's signature
        """Return the term `hard_label`, and `1 - alpha` for the hard loss.

        Args:
            student: logits `[B, C]`, any floating type.
            teacher: logits `[B, C]`, any floating type.
            batch: not needed here; it may be unlabelled.

        Raises:
            StageError: the shapes differ, or the teacher's logits are not finite.
        """
        import torch.nn.functional as F

        ours, theirs = comparable("hard-label", student, teacher)
        soft = F.cross_entropy(ours, theirs.argmax(dim=1))
        return LossTerms(terms={"hard_label": self.alpha * soft}, hard_weight=1 - self.alpha)
