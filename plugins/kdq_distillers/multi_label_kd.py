"""Distiller `multi-label-kd`: the student follows the teacher's yes or no for each class.

What: divergence between the sigmoids of teacher and student at temperature T, for each class on its own. The
    workload's own loss on hard labels is added. Any number of classes may be true of a sample.
Formula: L = alpha * T^2 * mean over the batch of (sum over the classes of KL(Bernoulli(p_t) || Bernoulli(p_s)))
    + (1 - alpha) * L_hard, with p = sigmoid(z / T), and
    KL = p_t * log(p_t / p_s) + (1 - p_t) * log((1 - p_t) / (1 - p_s)).
Source: Yang et al. 2023, "Multi-Label Knowledge Distillation", arXiv:2308.06453 (its loss on logits, without the terms
    on label embeddings); temperature and its square after Hinton et al. 2015, arXiv:1503.02531.
Defaults and where they come from: temperature 1, because the paper has none. alpha 0.5, an equal share, is our own.
Costs: four log-sigmoids of `[B, C]` in float32, and one wait for the device to check that the teacher is finite.
Limits: models trained with one sigmoid per class (binary cross entropy), and the same classes in the same order in
    teacher and student. For one label per sample use `logit-kd` or `logistic`. The loss grows with the number of
    classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Field, TakenFor
from kdq_distillers.logits import AlphaDistiller, divergence

if TYPE_CHECKING:
    from torch import Tensor


class MultiLabelKd(AlphaDistiller):
    """Distillation of independent labels (Yang et al. 2023)."""

    catalog_name: ClassVar[str] = "multi-label-kd"
    reads: ClassVar[TakenFor] = "labels"
    temperature: float = Field(default=1.0, ge=0.01, le=100, description="softens all sigmoids; 1 leaves them")

    def soft_terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return `multi_label`, summed over the labels."""
        log_p, log_q = (log_yes_and_no(z / self.temperature) for z in (teacher, student))
        soft = self.temperature**2 * divergence(log_p, log_q)
        return {"multi_label": self.alpha * soft}


def log_yes_and_no(logits: Tensor) -> Tensor:
    """`log sigmoid(z)` and `log(1 - sigmoid(z))`: `[B, C]` gives `[B, 2, C]`."""
    import torch
    import torch.nn.functional as F

    return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), dim=1)
