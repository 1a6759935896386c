"""Stage `my-plugin`: clip outliers among the student's weights before they are quantized.

What: in each weight of two or more dimensions, values outside of +-limit standard deviations become that limit.
Formula: w = clamp(w, -limit * std(w), limit * std(w)).
Source: Banner et al. 2019, "Post training 4-bit quantization", arXiv:1810.05723, with a limit that is given.
Defaults: limit 4.
Costs: one pass over the weights.
Limits: it does not train; list it between `distill` and `quantize`.
"""

from typing import ClassVar

from kdq_core.api import Checkpoint, Field, Port, Reads, Record, Section, Stage


class MyPlugin(Stage):
    """Its fields are the options of a recipe."""

    gives: ClassVar[str] = "student"  # the slot that it fills
    record: ClassVar[type[Record]] = Checkpoint

    limit: float = Field(default=4.0, gt=0, le=100, description="standard deviations that a weight may be away from 0")

    def inputs(self, asked):
        """The slots that it reads."""
        return {"student": Port(slot="student", record=Checkpoint)}

    def reads(self, asked, wired):
        """Everything else that the result depends on; KDQ makes the key from it."""
        sections = (Section(name="workload"), Section(name="student", only=("factory",)))
        return Reads(sections=sections, plugins=("workload",))

    def untrained(self, work):
        """A model as `run` gives, with any weights; the checks before a run use it."""
        return work.model("student") if work.has("student") else None

    def run(self, work):
        """Do the work."""
        import torch

        model = work.model("student")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.clamp_(-self.limit * weight.std(), self.limit * weight.std())
        return work.checkpoint(model)
