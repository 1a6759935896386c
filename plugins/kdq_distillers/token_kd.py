"""Distiller `token-kd`: at each position of a sequence the student follows the teacher's softened distribution.

What: Kullback-Leibler divergence between the distributions of teacher and student at temperature T over the vocabulary
    or the labels. It is taken at each position that is not padding. The workload's own loss on hard labels is added.
Formula: L = alpha * T^2 * mean over the real positions of KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) *
    L_hard. Every real position of the batch has the same weight, so a long sequence weighs more than a short one.
Source: Kim and Rush 2016, "Sequence-Level Knowledge Distillation", arXiv:1606.07947, section 3.1 (word-level
    distillation); temperature and its square after Hinton et al. 2015, arXiv:1503.02531.
Defaults and where they come from: temperature 1, because the paper has none. alpha 0.5, an equal share, is our own.
Costs: two log-softmaxes over the real positions in float32, and two waits for the device: to count the positions, and
    to check that the teacher is finite.
Limits: both models need the same tokenizer, so that position and class mean the same. Padding is read from an input
    (`padding_input`), or from labels of -100; without either, all positions count. A batch without real positions gives
    zero. A cached teacher must be finite at padding too, and within the range of fp16 unless the cache has
    `form: fp32`. Sequences that the teacher itself wrote (sequence-level distillation) are data, not a loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdq_core.api import Batch, Distiller, Field, LossTerms, Outputs, StageError
from kdq_distillers.logit_kd import soft_loss
from kdq_distillers.logits import comparable, nothing

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100


class TokenKd(Distiller):
    """Distillation position by position (Kim and Rush 2016)."""

    alpha: float = Field(default=0.5, ge=0, le=1, description="weight of the teacher; the labels get 1 - alpha")
    temperature: float = Field(default=1.0, ge=0.01, le=100, description="softens both distributions; 1 leaves them")
    padding_input: int | None = Field(
        default=None,
        ge=0,
        le=99,
        description="which input [B, L] marks padding, counted from 0: token numbers, or a mask",
    )
    padding_value: int = Field(default=0, description="the value of that input at padding")

    def takes_top_k(self) -> bool:
        """True, because the loss compares softmax distributions."""
        return True

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:
        """Return the soft term `token`, and `1 - alpha` for the hard loss.

        Args:
            student: logits `[B, L, C]`, any floating type; `[B, C]` is a sequence of one.
            teacher: logits of the same shape.
            batch: inputs, and perhaps labels `[B, L]`, that mark padding.

        Raises:
            StageError: the shapes differ, the teacher's logits are not finite at a real position, or the input that
                marks padding has another shape.
        """
        ours, theirs = student.logits, teacher.logits.detach()
        if ours.shape != theirs.shape or ours.ndim < 2:
            raise StageError(
                f"distiller 'token-kd' compares logits [samples, positions, classes] of one shape, but the student's "
                f"are {tuple(ours.shape)} and the teacher's {tuple(theirs.shape)}; give both models one tokenizer and "
                "the same classes"
            )
        real = self.real_positions(batch, ours)
        ours, theirs = comparable("token-kd", Outputs(ours[real]), Outputs(theirs[real]))
        soft = soft_loss(ours, theirs, self.temperature) if len(ours) else nothing(student.logits.float())
        return LossTerms(terms={"token": self.alpha * soft}, hard_weight=1 - self.alpha)

    def real_positions(self, batch: Batch, logits: Tensor) -> Tensor:
        """Mark the real positions: bools `[B, L]`, false at padding."""
        import torch

        shape = logits.shape[:-1]
        if self.padding_input is not None:
            if self.padding_input >= len(batch.inputs):
                raise StageError(
                    f"distiller 'token-kd' reads padding from input {self.padding_input}, but the model has "
                    f"{len(batch.inputs)} inputs, counted from 0; correct 'padding_input'"
                )
            told = batch.inputs[self.padding_input]
            if told.shape != shape:
                raise StageError(
                    f"distiller 'token-kd' reads padding from input {self.padding_input} of shape {tuple(told.shape)}, "
                    f"but the logits have positions {tuple(shape)}; correct 'padding_input'"
                )
            return told != self.padding_value
        labels = batch.targets
        if labels is not None and labels.shape == shape and not labels.is_floating_point():
            return labels != IGNORED_LABEL
        return torch.ones(shape, dtype=torch.bool, device=logits.device)
