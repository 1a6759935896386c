"""How many epochs the float student trains, and how many of the same schedule are left to its quantizer.

Importable without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from kdq_core.frozen import Frozen
from kdq_core.plugins.choosing import Choosing

if TYPE_CHECKING:
    from kdq_core.plugins.asked import Asked

DISTILL, QUANTIZE, STUDENT = "distill", "quantize", "student"


class SharedSchedule(Frozen):
    """One learning-rate schedule of `distill` and `quantize`."""

    epochs: int = Field(ge=2, description="of the whole schedule")
    tail: int = Field(ge=0, description="its last epochs, in which a quantizer may train")
    stops: bool = Field(description="whether the float student stops before the tail, because a quantizer will train")

    @property
    def kept(self) -> int:
        """The epoch after which the tail begins."""
        return self.epochs - self.tail

    @property
    def in_float(self) -> int:
        """How many epochs the float student trains."""
        return self.kept if self.stops else self.epochs


def shared_schedule(asked: Asked) -> SharedSchedule | None:
    """The schedule that `distill` and `quantize` share; `None` if each has its own.

    They share one if the recipe has a budget, or if it leaves the choice of the quantizer to KDQ. Without a budget the
    epochs of both sections together are the budget.
    """
    recipe = asked.recipe
    chooses = isinstance(asked.quantizer, Choosing)
    if not (recipe.budget or chooses) or not _adjoin(asked):
        return None
    epochs = recipe.budget.epochs if recipe.budget else recipe.distill.fit.epochs + recipe.quantize.fit.epochs
    tail = min(recipe.quantize.fit.epochs, epochs - 1) if asked.quantizer.trains else 0
    return SharedSchedule(epochs=epochs, tail=tail, stops=tail > 0 and (not chooses or len(asked.ways) == 1))


def _adjoin(asked: Asked) -> bool:
    """Whether the recipe quantizes the student that it distilled, so that one can go on where the other stopped."""
    stages = asked.recipe.stages
    names = [use.use for use in stages]
    if not names.count(DISTILL) == names.count(QUANTIZE) == 1:
        return False
    between = stages[names.index(DISTILL) + 1 : names.index(QUANTIZE)]
    others = (asked.plugin("stage", use.use, use.options) for use in between)
    return names.index(DISTILL) < names.index(QUANTIZE) and all(getattr(one, "gives", "") != STUDENT for one in others)
