"""Stage `prune-channels`: take the weakest channels out of the student's convolutions.

What: removes output channels of convolutions, their entries in batch norms, and the inputs of the layer that reads
    them. With `epochs`, trains the pruned student on the hard labels.
Formula: of C channels, removes the floor(share * C) with the smallest sum of |w|; at least one stays.
Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710.
Defaults: share 0.3, and no training.
Costs: one trace of the student, then its fit.
Limits: prunes a convolution if its output goes to one convolution or linear layer, with only batch norm, relu, dropout,
    pooling and flatten between them. Grouped convolutions keep all channels, and so do convolutions whose outputs are
    added or have several readers. The stage refuses a student without a convolution that it can prune.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Asked, Checkpoint, Field, FitSpec, Port, Reads, Record, Section, Stage, StageError, Work

if TYPE_CHECKING:
    from torch import nn


class PrunedStudent(Checkpoint):
    """Weights of the pruned student, and which channels it kept."""

    type: Literal["pruned-student"] = "pruned-student"
    kept: dict[str, tuple[int, ...]] = Field(description="numbers of the channels that stay, by path of the layer")


class PruneChannels(Stage):
    """The student with fewer channels."""

    gives: ClassVar[str] = "student"
    record: ClassVar[type[Record]] = PrunedStudent

    share: float = Field(default=0.3, ge=0, lt=1, description="share of each layer's channels that the stage removes")
    epochs: int = Field(default=0, ge=0, le=10_000, description="epochs of training on the hard labels; 0: none")
    learning_rate: float = Field(default=5e-4, gt=0, le=10, description="learning rate of that training")

    def inputs(self, asked: Asked) -> Mapping[str, Port]:
        """The student that an earlier stage gives."""
        return {"student": Port(slot="student", record=Checkpoint)}

    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:
        """The fields that build the student, and the data that it is trained on."""
        student = Section(name="student", only=("factory",))
        return Reads(sections=(Section(name="workload"), student), plugins=("workload",))

    def check(self, work: Work) -> None:
        """Refuse a student without a convolution to prune."""
        if work.has("student"):
            self.untrained(work)

    def untrained(self, work: Work) -> nn.Module | None:
        """A student with the widths that `run` will give."""
        if not work.has("student"):
            return None
        return self._pruned(work.model("student"))[0]

    def run(self, work: Work) -> Record:
        """Prune the student, and train it if `epochs` asks for it."""
        from kdq_core.api import hard_loss

        model, cuts = self._pruned(work.model("student"))
        work.seeded("prune-channels")
        spec = FitSpec(epochs=self.epochs or 1, learning_rate=self.learning_rate)
        history = work.fit(model, hard_loss(work.workload), spec) if self.epochs else ()
        kept = {cut["conv"]: tuple(cut["kept"]) for cut in cuts}
        return work.checkpoint(model, history, of=PrunedStudent, surgery=cuts, kept=kept)

    def operate(self, model: nn.Module, surgery: list) -> nn.Module:
        """Remove the same channels from a student with other weights."""
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
