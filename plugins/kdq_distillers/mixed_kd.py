"""Distiller `mixed-kd`: some outputs are classes that exclude each other, the others are independent labels.

What: divergence between teacher and student at temperature T. Each group of exclusive classes is compared by softmax,
    each output outside the groups by its own sigmoid. The workload's own loss on hard labels is added.
Formula: L = alpha * T^2 * mean over the batch of (sum over the groups of KL(softmax(z_t / T) || softmax(z_s / T)) + sum
    over the other outputs of KL(Bernoulli(p_t) || Bernoulli(p_s))) + (1 - alpha) * L_hard, p = sigmoid(z / T).
Source: the sum of Hinton et al. 2015, arXiv:1503.02531 (groups), and Yang et al. 2023, arXiv:2308.06453 (labels), which
    treats a label as a group of two: yes and no.
Defaults and where they come from: temperature 1 as in the latter. alpha 0.5, an equal share, is our own.
Costs: a log-softmax and four log-sigmoids of `[B, C]` in float32, and one wait for the device to check that the teacher
    is finite.
Limits: both models must be trained in the same way on these outputs. Each output is in one group at most. A group and a
    label have the same weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator

from kdq_core.api import Field, StageError, TakenFor
from kdq_distillers.logit_kd import soft_loss
from kdq_distillers.logits import AlphaDistiller, divergence
from kdq_distillers.multi_label_kd import log_yes_and_no

if TYPE_CHECKING:
    from torch import Tensor


class MixedKd(AlphaDistiller):
    """Groups of exclusive classes beside independent labels."""

    catalog_name: ClassVar[str] = "mixed-kd"
    reads: ClassVar[TakenFor] = "labels"
    temperature: float = Field(default=1.0, ge=0.01, le=100, description="softens all distributions; 1 leaves them")
    groups: tuple[tuple[int, int], ...] = Field(
        default=(), description="groups of exclusive classes as [first, last], counted from 0; all others are labels"
    )

    @field_validator("groups")
    @classmethod
    def _apart(cls, value: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        taken: set[int] = set()
        for first, last in value:
            if not 0 <= first <= last:
                raise ValueError(f"[{first}, {last}] is no group; write [first, last] with 0 <= first <= last")
            if taken & set(range(first, last + 1)):
                raise ValueError(
                    f"[{first}, {last}] shares an output with another group; give each output to one group"
                )
            taken |= set(range(first, last + 1))
        return value

    def soft_terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return `classes` if there are groups, and `labels` if there are other outputs.

        Raises:
            StageError: a group ends beyond the outputs.
        """
        import torch

        outputs = student.shape[1]
        beyond = [list(group) for group in self.groups if group[1] >= outputs]
        if beyond:
            raise StageError(
                f"distiller 'mixed-kd' has a group {beyond[0]}, but the models give {outputs} outputs, 0 to "
                f"{outputs - 1}; correct 'groups'"
            )
        free = torch.ones(outputs, dtype=torch.bool, device=student.device)
        terms: dict[str, Tensor] = {}
        for first, last in self.groups:
            free[first : last + 1] = False
            part = soft_loss(student[:, first : last + 1], teacher[:, first : last + 1], self.temperature)
            terms["classes"] = self.alpha * part + terms.get("classes", torch.zeros_like(part))
        if free.any():
            log_p, log_q = (log_yes_and_no(z[:, free] / self.temperature) for z in (teacher, student))
            terms["labels"] = self.alpha * self.temperature**2 * divergence(log_p, log_q)
        return terms
