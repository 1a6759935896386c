"""Correct distillers that the broken ones of the tests differ from in one thing."""

from typing import ClassVar, Literal

import torch

from kdq_core.api import Distiller, Field, LossTerms


class Kl(Distiller):
    """Of outputs."""

    alpha: float = Field(default=0.5, ge=0, le=1, description="a weight")

    def takes_top_k(self):
        return True

    def loss(self, student, teacher, batch):
        return self.terms(student.logits.float(), teacher.logits.detach().float())

    def terms(self, student, teacher):
        return LossTerms({"soft": self.alpha * self.each(student, teacher).mean()}, 1 - self.alpha)

    def each(self, student, teacher):
        p, q = teacher.log_softmax(-1), student.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)


class Hints(Kl):
    """Of features."""

    features: ClassVar[Literal["none", "pairs"]] = "pairs"

    def loss(self, student, teacher, batch):
        return self.terms(student.features["vector"].float(), teacher.features["vector"].detach().float())

    def each(self, student, teacher):
        return (student - teacher).square().mean(-1)

    def projectors(self, student, teacher):
        return {"vector": torch.nn.Linear(*student["vector"], *teacher["vector"])}
