"""Measure which operators the int8 file computes faster, and leave the others in float.

What: writes the untrained student for the target's runtime, in float, in int8, and in each form that the target names:
    one family of operators in float, such as depthwise convolutions, or all of them. It measures the files beside each
    other at the batch size of the target, and chooses the fastest form. Operators in float keep integer weights in the
    file, which the runtime dequantizes when it loads the file.
Formula: a form replaces another with more operators in int8 only if the whole 99 % interval of the ratio of their
    median times is above 1. So ties go to int8. If several families gain, all of them together are measured too.
Source: the intervals of `kdq_core.timing.times`, by sectioning: Asmussen and Glynn 2007, "Stochastic Simulation".
Defaults: `placement: fastest` and `batch_size: 1`, options of the target. With `smallest`, or a target that knows no
    forms, KDQ leaves this stage out. So it does with a quantizer whose activations are not static.
Costs: seconds, since no model is trained: about one for each form. A net in which nothing is in doubt is written twice.
    KDQ writes the form with all layers in float only if int8 is not shown faster than the float file.
Limits: it measures time, so no other computation of KDQ may run beside it. KDQ keeps what it chose, and measures again
    only for another architecture, target, runtime, machine (instruction set), data or code. The times depend on this
    machine: a file that runs on other machines should be placed on one like them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Asked, ChosenForm, Needs, PlacingTarget, Port, Reads, Record, Section, Stage
from kdq_core.work.slots import STUDENT

if TYPE_CHECKING:
    from kdq_core.work.work import StageWork

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
READ = ("activations", "edges", "rules")
"""The fields of `quantize` that decide which kernels run; weights of fewer bits are unpacked when a file is loaded."""


class Placing(Stage):
    """The fastest form of the file."""

    gives: ClassVar[str] = "placement"
    record: ClassVar[type[Record]] = ChosenForm
    needs: ClassVar[Needs] = Needs(device="cpu", alone=True)

    def wanted(self, asked: Asked) -> bool:
        """Whether the target chooses by measurement, and the quantizer quantizes activations before the file runs."""
        target = asked.target
        chooses = isinstance(target, PlacingTarget) and target.placement == "fastest"
        return chooses and asked.quantizer.activations == "static"

    def inputs(self, asked: Asked) -> Mapping[str, Port]:
        """The student, if a stage changes its architecture; else nothing, since the weights do not matter."""
        stages = (asked.plugin("stage", use.use, use.options) for use in asked.recipe.stages)
        changed = any(type(stage).operate is not Stage.operate for stage in stages if isinstance(stage, Stage))
        return {"student": STUDENT} if changed else {}

    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:  # noqa: ARG002
        """The target, and the fields that decide architecture and bits."""
        sections = (
            Section(name="workload"),
            Section(name="student", only=("factory",)),
            Section(name="quantize", only=READ),
            Section(name="target"),
        )
        libraries = (*Reads().libraries, *LIBRARIES)
        return Reads(sections=sections, plugins=("workload", "target"), libraries=libraries, seeded=False)

    def run(self, work: StageWork) -> Record:  # type: ignore[override]
        """Write the forms, measure them, and choose."""
        from kdq_core.work.forms import chosen_form

        return chosen_form(work)
