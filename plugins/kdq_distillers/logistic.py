"""Distiller `logistic`: the student's margins follow the teacher's, class by class.

What: logistic loss of the student's margins under the teacher's labels, each class against all others. The workload's
    own loss on hard labels is added.
Formula: the margin of class c is m_c = log(p_c / (1 - p_c)) with p = softmax(z). If the teacher is sure, its label is
    y = +1 or -1, and the loss of the class is log(1 + exp(-y * m_s)). If the teacher gives y = +1 the probability p_t,
    the loss is the mean over its labels,
        l(m_s) = p_t * log(1 + exp(-m_s)) + (1 - p_t) * log(1 + exp(m_s)).
    Its least value, the entropy of the teacher's label, is at m_s = m_t and cannot be learned away; it is subtracted,
    so that equal models give zero:
        L = alpha * mean over the batch of (sum over the classes of l(m_s) - l(m_t)) + (1 - alpha) * L_hard.
    That difference is the Kullback-Leibler divergence of two coins. For two classes L is twice `logit-kd` at T = 1.
Source: the logistic loss of a margin: Friedman, Hastie and Tibshirani 2000, "Additive logistic regression: a
    statistical view of boosting", Annals of Statistics 28(2). Its mean under the teacher's probabilities, the
    distilled risk: Menon et al. 2020, "Why distillation helps: a statistical perspective", arXiv:2005.10419. Some
    introductions show the product of two real margins, log(1 + exp(-m_s * m_t)). KDQ does not offer it: it is least at
    infinite m_s, not at m_s = m_t.
Defaults and where they come from: alpha 0.5, an equal share, is our own; there is no temperature, as in the sources.
Costs: a softmax and one more sum of exponentials of `[B, C]` in float32 for each model, and one wait for the device to
    check that the teacher is finite.
Limits: single-label classification, and the same classes in the same order in teacher and student. For several labels
    per sample use `multi-label-kd`. One class has no margin and gives zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_distillers.logits import AlphaDistiller, divergence, nothing, others

if TYPE_CHECKING:
    from torch import Tensor


class Logistic(AlphaDistiller):
    """Margin distillation with the logistic loss (Friedman et al. 2000, Menon et al. 2020)."""

    catalog_name: ClassVar[str] = "logistic"

    def soft_terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return `logistic`, summed over the classes."""
        soft = nothing(student) if student.shape[1] == 1 else divergence(log_coins(teacher), log_coins(student))
        return {"logistic": self.alpha * soft}


def log_coins(logits: Tensor) -> Tensor:
    """`log p` and `log(1 - p)` of each class: `[B, C]` gives `[B, 2, C]`, C at least 2.

    For the likeliest class `1 - p` is the sum over the other classes, because the difference would round to 0.
    """
    import torch

    log_p = logits.log_softmax(dim=1)
    top = logits.argmax(dim=1)
    rest_of_top = others(logits, top).logsumexp(dim=1) - logits.logsumexp(dim=1)
    top = top[:, None]
    small = log_p.exp().scatter(1, top, 0.0)  # each at most 1/2
    return torch.stack((log_p, torch.log1p(-small).scatter(1, top, rest_of_top[:, None])), dim=1)
