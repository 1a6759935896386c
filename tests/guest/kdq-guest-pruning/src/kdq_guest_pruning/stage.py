"""Stage `prune-channels`: take the weakest channels out of the student's convolutions.

What: removes output channels of convolutions, their entries in batch norms, and the inputs of the layer that reads
    them. With `epochs`, trains what is left on the hard labels.
Formula: of C channels the floor(share * C) with the smallest sum of |w| go; at least one stays.
Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710.
Defaults: share 0.3, and no training.
Costs: one trace of the student, then its fit.
Limits: a convolution is pruned if what it gives goes to one convolution or linear layer, with nothing between them but
    batch norm, relu, dropout, pooling and flatten. Grouped convolutions, and those whose outputs are added or have
    several readers, keep all channels. A student in which none can be pruned is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Asked, Checkpoint, Field, FitSpec, Port, Reads, Record, Section, Stage, StageError, Work

if TYPE_CHECKING:
    from torch import nn


class PrunedStudent(Checkpoint):
    """Weights of the student, and which channels they are of."""

    type: Literal["pruned-student"] = "pruned-student"
    kept: dict[str, tuple[int, ...]] = Field(description="numbers of the channels that stay, by path of the layer")


class PruneChannels(Stage):
    """The student with fewer channels."""

    gives: ClassVar[str] = "student"
    record: ClassVar[type[Record]] = PrunedStudent

    share: float = Field(default=0.3, ge=0, lt=1, description="of the channels of each layer that are taken out")
    epochs: int = Field(default=0, ge=0, le=10_000, description="of training on the hard labels afterwards; 0: none")
    learning_rate: float = Field(default=5e-4, gt=0, le=10, description="of that training")

    def inputs(self, asked: Asked) -> Mapping[str, Port]:
        """The student, as the stage before gave it."""
        return {"student": Port(slot="student", record=Checkpoint)}

    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:
        """What a student is built of, and the data that it is trained on."""
        student = Section(name="student", only=("factory",))
        return Reads(sections=(Section(name="workload"), student), plugins=("workload",))

    def check(self, work: Work) -> None:
        """Refuse a student that has nothing to prune."""
        if work.has("student"):
            self.untrained(work)

    def untrained(self, work: Work) -> nn.Module | None:
        """A student as wide as the one it will give."""
        if not work.has("student"):
            return None
        return self._pruned(work.model("student"))[0]

    def run(self, work: Work) -> Record:
        """Prune it, and train what is left."""
        from kdq_core.api import hard_loss

        model, cuts = self._pruned(work.model("student"))
        work.seeded("prune-channels")
        spec = FitSpec(epochs=self.epochs or 1, learning_rate=self.learning_rate)
        history = work.fit(model, hard_loss(work.workload), spec) if self.epochs else ()
        kept = {cut["conv"]: tuple(cut["kept"]) for cut in cuts}
        return work.checkpoint(model, history, of=PrunedStudent, surgery=cuts, kept=kept)

    def operate(self, model: nn.Module, surgery: list) -> nn.Module:
        """Take the same channels out of a student with other weights."""
        from kdq_guest_pruning.channels import cut_out

        return cut_out(model, surgery)

    def _pruned(self, model: nn.Module) -> tuple[nn.Module, list]:
        from kdq_guest_pruning.channels import chains, cut_out, strongest

        found = chains(model)
        if not found:
            raise StageError(
                "'prune-channels' finds no convolution in the student whose channels one other layer reads; leave the "
                "stage out, or use a student with such a chain"
            )
        cuts = [chain | {"kept": strongest(model, chain["conv"], self.share)} for chain in found]
        return cut_out(model, cuts), cuts
