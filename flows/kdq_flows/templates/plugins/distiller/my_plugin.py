"""Distiller `my-plugin`: the student's logits follow the teacher's.

What: mean squared difference of logits, beside the loss on hard labels.
Formula: L = alpha * mean (z_s - z_t)^2 + (1 - alpha) * L_hard.
Source: Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", arXiv:1312.6184.
Defaults: alpha 0.5.
Costs: one pass over the logits.
Limits: teacher and student have the same classes in the same order.
"""

from kdq_core.api import Distiller, Field, LossTerms


class MyPlugin(Distiller):
    """Its fields are the options of a recipe."""

    alpha: float = Field(default=0.5, ge=0, le=1, description="weight of the teacher; the labels get 1 - alpha")

    def loss(self, student, teacher, batch):
        """Give scalar terms, already weighted, and the weight of the loss on hard labels."""
        difference = student.logits.float() - teacher.logits.detach().float()
        return LossTerms(terms={"mse": self.alpha * difference.square().mean()}, hard_weight=1 - self.alpha)
