"""Target `openvino`: int8 ONNX files for OpenVINO on a CPU.

What
    The QDQ files of `onnxruntime-cpu`, with the same options, but placed, written and run for OpenVINO. Recurrent
    layers stay float, because OpenVINO has no int8 kernels for them. Coverage is read from OpenVINO's own graph.
Source
    OpenVINO 2026.4, "Low Precision Transformations" of its documentation; Jacob et al. 2018, "Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference".
Defaults
    `exact_sums: true` rounds the terms of a sum as the simulation does. Without it OpenVINO keeps more digits there at
    8 bits. Below 8 bits it would drop the clip, so KDQ always writes the exact form there. ResNet-8 and ResNet-20
    differed from their simulation in 23 and 26 % of the outputs without `exact_sums`, and in 0.5 and 5 % with it,
    always by one LSB.
Costs
    A linear layer that is float by choice has float weights in the file, because OpenVINO would compute it in integers
    otherwise. `exact_sums` makes a call of a residual network up to 7 % longer at batch 32, and not measurably at batch
    1. Packed weights make loading slower.
Limits
    Recurrent layers run in float, with float weights, whatever `gru` says. Means and sums over anything but all
    positions of a channel run in float, because OpenVINO's int8 ones can be wrong; extremes are rounded in a step of
    their own. OpenVINO breaks ties of rounding its own way: single outputs differ by one LSB from the simulation. It
    sends no usage data: a process that loads this target does not import `openvino_telemetry`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kdq_core.api import Departure, Field, Form, OperatorCoverage, Place, Session, TensorSpec
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

if TYPE_CHECKING:
    import numpy as np
    from torch import nn
    from torch.fx import GraphModule

    from kdq_targets.onnx_places import Finder


class OpenVinoCpu(OnnxRuntimeCpu):
    """Quantizes, writes and runs models for OpenVINO's CPU plug-in."""

    late_imports: ClassVar[tuple[str, ...]] = (*OnnxRuntimeCpu.late_imports, "kdq_targets.openvino_session")

    exact_sums: bool = Field(
        default=True, description="whether a conv's output is rounded before a residual add, as in the simulation"
    )

    def resolved(self) -> dict[str, str | int | bool]:
        """Return the value of `reduce_range` on this machine, and the version of OpenVINO."""
        return {**super().resolved(), "openvino": importlib.metadata.version("openvino")}

    def finder(self, graph: GraphModule, keep_float: Sequence[str]) -> Finder:
        """Make the finder of the tensors that OpenVINO's int8 kernels want quantized."""
        from kdq_targets.openvino_places import OpenVinoFinder

        return OpenVinoFinder(graph, keep_float, self.quantize_outputs, self.weight_only)

    def forms(self, graph: GraphModule, *, keep_float: Sequence[str] = ()) -> tuple[Form, ...]:
        """Return the families in doubt without embeddings, which OpenVINO looks up as integers in any form."""
        from kdq_targets.onnx_forms import forms_of

        return forms_of(self.finder(graph, keep_float), self.weight_only, self.gru, ("conv", "linear"))

    def _rewrites(self, model: nn.Module) -> list[Callable[[Any], None]]:
        from kdq_targets import openvino_forms as forms

        sums = partial(forms.separate_sums, every=self.exact_sums)
        others = [forms.separate_turned, forms.keep_means, forms.part_products, forms.part_heads, forms.part_halves]
        places: Sequence[Place] = getattr(model, "meta", {}).get("kdq_places", ())
        others += [forms.keep_float] if any(place.weight_only for place in places) else []
        return [sums, *others, *self._packing(model)]

    def signature(self, path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs of the file; -1 is the free batch size."""
        from kdq_targets.openvino_session import OpenVinoSession

        return OpenVinoSession(path).signature()

    def session(self, path: Path, *, threads: int) -> Session:
        """Load the file.

        Raises:
            StageError: the file is missing, or OpenVINO cannot load it.
        """
        from kdq_targets.openvino_session import OpenVinoSession

        return OpenVinoSession(path, threads=threads)

    def coverage(
        self, path: Path, graph: GraphModule, *, keep_float: Sequence[str] = ()
    ) -> tuple[OperatorCoverage, ...]:
        """Return one row for each operator of the captured graph, with the precision its layer runs in.

        Raises:
            StageError: the file is missing, damaged, or does not belong to this model.
        """
        from kdq_targets.onnx_coverage import cover
        from kdq_targets.openvino_kernels import OpenVinoKernels

        return cover(path, self.finder(graph, keep_float), OpenVinoKernels(path))

    def departures(
        self, path: Path, simulation: GraphModule, inputs: tuple[np.ndarray, ...], *, threads: int
    ) -> tuple[Departure, ...]:
        """List the integer tensors that differ between the file and its simulation, first to last."""
        from kdq_targets.departures import departures_of_file

        return departures_of_file(path, simulation, inputs, partial(self.session, threads=threads), before_clip=True)
