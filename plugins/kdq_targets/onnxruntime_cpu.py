"""Target `onnxruntime-cpu`: int8 ONNX files for ONNX Runtime on a CPU.

What
    Conv (over one to three axes), linear, embedding, LSTM and GRU are int8. A weight may be computed from parameters,
    as by weight norm; the file holds its value. `x @ w` with a parameter w is a linear layer. The additions,
    multiplications, poolings, concatenations and table look-ups (relu, leaky relu, sigmoid) around them are int8 too,
    and so are the operators that move data between them. Activations are uint8 affine, weights int8 symmetric per
    output channel, biases int32. Between float operators nothing is quantized: layer norm, softmax, GELU, products
    between activations and the residual additions of a transformer stay float, and the coverage says why. The file is
    QDQ ONNX (opset 20, or 23 if it has the operator `Attention`), which the runtime fuses into QLinearConv, QLinearAdd,
    QGemm and similar operators. A linear layer on more than two axes is a Gemm on rows. An embedding is a Gather of
    int8, followed by a dequantization with one scale per column; neighbouring tables of one shape in a concatenation
    are read as one. An embedding bag is such a look-up and a float reduction; its bags must have one size. An LSTM is a
    DynamicQuantizeLSTM with pinned ranges: two columns of its input hold the ends of the range, and two hidden units
    stay at 1 and -1. A GRU is one product for all inputs and a Scan over the states. Both use operators of
    `com.microsoft`. Of a recurrent layer in one direction whose last step alone is read, the file reads the last state.
    Attention without a mask on a fixed length is one float operator with the batch first, in float files too, unless
    the model has convolutions. None of these forms changes a value.
Source
    Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference";
    the QDQ form and the fusions are ONNX Runtime's, section "Quantize ONNX models" of its documentation.
Defaults
    `reduce_range: auto` reads the CPU's flags. `quantize_outputs: true` keeps the last layer in one int8 kernel too.
    `gru: int8` is the faster form at batch 32 (1.2 times the float one with AVX2, 1.7 to 2 with VNNI). `weight-only`
    keeps the float one's speed at any batch, in a quarter of the file, and counts as float in the coverage.
    `pack: true` packs each weight for which that makes the file smaller. It packs 65 to 128 levels only if a recipe
    asks for 7 bits: that saves only an eighth, and weights of a reduced range have as many levels.
Costs
    Packed weights make loading slower, by 10 to 60 ms for 4.5 million weights. Calls take the same time.
Limits
    On x86 CPUs without VNNI the uint8 x int8 kernels add pairs of products in 16 bits and saturate; there weights keep
    to -63..63 (`reduce_range`). A first state given to an LSTM or GRU should lie in [-1, 1], as their own states do. If
    it does not, a GRU clips it before its products with weights, in the simulation and in the file. An LSTM clips it in
    the simulation only. In the file the runtime widens the range of the whole batch. That is nearer to the float layer
    (states up to 4: 0.008 from it, 0.35 from the simulation), but a sample's answer then depends on the others (0.002).
    An int8 GRU at batch 1 can be slower than the runtime's float one: there use `gru: weight-only`. Transposed
    convolutions, bilinear layers, plain recurrent layers (`nn.RNN`) and an LSTM with `proj_size` stay float; the latter
    takes no first state. Average pooling stays float where it divides by another number than that of a window's values.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdq_core.api import Departure, Field, Form, OperatorCoverage, Place, PlacingTarget, Session, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.fx import GraphModule

    from kdq_targets.onnx_places import Finder

VNNI = {"avx512_vnni", "avx_vnni"}


def cpu_saturates(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str | None = None) -> bool:
    """Say whether 8-bit products can saturate here: on an x86 CPU whose flags do not name VNNI."""
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64", "i686"):
        return False
    return not VNNI & _flags(cpuinfo)


@cache
def _flags(cpuinfo: Path) -> frozenset[str]:
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    flags = (line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(flags, ()))


class OnnxRuntimeCpu(PlacingTarget):
    """Quantizes, writes and runs models for ONNX Runtime's CPU provider."""

    late_imports: ClassVar[tuple[str, ...]] = (
        "kdq_targets.onnx_export",
        "kdq_targets.ort_session",
        "torch.onnx._internal.exporter._core",
        "onnxscript.function_libs.torch_lib.ops",
        "kdq_targets.onnx_table",
    )
    reduce_range: Literal["auto", "on", "off"] = Field(
        default="auto", description="7-bit weights, for CPUs whose 8-bit products saturate; auto reads the CPU's flags"
    )
    quantize_outputs: bool = Field(default=True, description="whether the model's outputs get an 8-bit grid too")
    gru: Literal["int8", "steps", "weight-only"] = Field(
        default="int8",
        description="form of a GRU. int8: integer products, that of all inputs outside of the loop over the steps; "
        "steps: all of them in it, faster at large batches; weight-only: integer weights with float arithmetic",
    )
    weight_only: tuple[str, ...] = Field(
        default=(),
        description="layers that compute in float with integer weights, as `path:type`, or types such as conv; the "
        "stage 'place' adds those that it measures to be slower in int8",
    )
    pack: bool = Field(default=True, description="whether weights of few levels share bytes in the file")

    def resolved(self) -> dict[str, str | int | bool]:
        """Return the value of `reduce_range` on this machine."""
        return {"reduce_range": cpu_saturates() if self.reduce_range == "auto" else self.reduce_range == "on"}

    def places(self, graph: GraphModule, *, keep_float: Sequence[str] = ()) -> tuple[Place, ...]:
        """Return the places for fake-quantizers in a captured graph; the operators of `keep_float` get none."""
        from kdq_targets.onnx_places import find_places

        return find_places(self.finder(graph, keep_float), 63 if self.resolved()["reduce_range"] else 127)

    def finder(self, graph: GraphModule, keep_float: Sequence[str]) -> Finder:
        """Make the finder of the tensors that the runtime's int8 kernels want quantized."""
        from kdq_targets.onnx_places import Finder

        types = ("gru",) if self.gru == "weight-only" else ()
        return Finder(graph, keep_float, self.quantize_outputs, (*types, *self.weight_only))

    def forms(self, graph: GraphModule, *, keep_float: Sequence[str] = ()) -> tuple[Form, ...]:
        """Return the families of operators whose int8 form may be slower, each in float, and all layers in float."""
        from kdq_targets.onnx_forms import forms_of

        return forms_of(self.finder(graph, keep_float), self.weight_only, self.gru)

    def export(self, model: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
        """Write a float or converted model: inputs `input` (or `input_0`, ...), outputs `logits`, `output_1`, ...

        Raises:
            StageError: an operator has no ONNX form.
        """
        from kdq_targets.onnx_export import write
        from kdq_targets.onnx_gru import gru_scan, gru_steps

        write(model, example, path, self._rewrites(model), gru=gru_steps if self.gru == "steps" else gru_scan)

    def _rewrites(self, model: nn.Module) -> list[Callable[[Any], None]]:
        """This target's changes of the ONNX graph."""
        from kdq_targets.onnx_faster import pad_channels, requantize_tables
        from kdq_targets.onnx_heads import fuse_attention
        from kdq_targets.onnx_tables import join_tables

        return [pad_channels, requantize_tables, join_tables, fuse_attention, *self._packing(model)]

    def _packing(self, model: nn.Module) -> list[Callable[[Any], None]]:
        from kdq_targets.onnx_pack import pack

        places: Sequence[Place] = getattr(model, "meta", {}).get("kdq_places", ())
        seven_bits = any(place.role == "weight" and place.bits == 7 for place in places)
        return [partial(pack, most_levels=128 if seven_bits else 64)] if self.pack else []

    def signature(self, path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs of the file; -1 is the free batch size."""
        from kdq_targets.ort_session import OrtSession

        return OrtSession(path).signature()

    def session(self, path: Path, *, threads: int) -> Session:
        """Load the file.

        Raises:
            StageError: the file is missing or damaged.
        """
        from kdq_targets.ort_session import OrtSession

        return OrtSession(path, threads=threads)

    def coverage(
        self, path: Path, graph: GraphModule, *, keep_float: Sequence[str] = ()
    ) -> tuple[OperatorCoverage, ...]:
        """Return one row for each operator of the captured graph, read from the runtime's optimised graph.

        Raises:
            StageError: the file is missing, damaged, or does not belong to this model.
        """
        from kdq_targets.onnx_coverage import cover
        from kdq_targets.ort_kernels import OrtKernels

        return cover(path, self.finder(graph, keep_float), OrtKernels(path))

    def departures(
        self, path: Path, simulation: GraphModule, inputs: tuple[np.ndarray, ...], *, threads: int
    ) -> tuple[Departure, ...]:
        """List the integer tensors that differ between the file and its simulation, first to last."""
        from kdq_targets.departures import departures_of_file

        return departures_of_file(path, simulation, inputs, partial(self.session, threads=threads))
