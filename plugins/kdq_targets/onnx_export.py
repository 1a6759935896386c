"""Write a model as a small, self-contained, byte-deterministic ONNX file."""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset18 as op
from torch import Tensor, nn
from torch.fx.immutable_collections import immutable_dict

from kdq_core.api import (
    StageError,
    dequantize,
    dynamic_linear,
    export_program,
    module_path,
    quantize,
    why_untraceable,
)
from kdq_targets.onnx_float import dynamic_linear as write_dynamic_linear
from kdq_targets.onnx_float import widen
from kdq_targets.onnx_fuse import fuse
from kdq_targets.onnx_gru import gru_scan
from kdq_targets.onnx_last import read_last_states
from kdq_targets.onnx_once import TRANSLATIONS as TRACED_ONCE
from kdq_targets.onnx_once import needs_one_trace, traced_once
from kdq_targets.onnx_recurrent import expand
from kdq_targets.onnx_registry import registry_read_once, silence
from kdq_targets.onnx_shrink import LABEL, label_layers, shrink
from kdq_targets.onnx_translate import TRANSLATIONS

aten = torch.ops.aten


def write(
    model: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    rewrites: Sequence[Callable[[Any], None]] = (),
    *,
    gru: Callable[..., None] = gru_scan,
) -> None:
    """Export `model` in eval mode to `path`, under a temporary name first.

    Args:
        model: float or converted.
        example: inputs, each `[B, ...]`.
        path: the file.
        rewrites: the target's changes of the ONNX graph, called in this order.
        gru: writes an int8 GRU.

    Raises:
        StageError: the model has an operator that cannot be written as ONNX.
    """
    training = model.training
    model.eval()
    try:
        proto, tasks = _export(model, example)
    finally:
        model.train(training)
    read_last_states(proto.graph)
    expand(proto, gru)
    widen(proto)
    fuse(proto)
    shrink(proto, rewrites, tasks)
    onnx.checker.check_model(proto, full_check=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _export(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[Any, tuple[str, ...]]:
    """Return the ONNX model, and the names of its outputs if they are tasks."""
    usual = ["input"] if len(example) == 1 else [f"input_{index}" for index in range(len(example))]
    inputs = list(getattr(example, "names", ())) or usual
    refused = f"model {type(model).__name__!r} cannot be written as ONNX: "
    with silence(), registry_read_once():
        try:
            program = export_program(model, example)
        except Exception as error:
            raise StageError(refused + why_untraceable(error, model)) from error
        once = needs_one_trace(program.graph)
        try:
            with traced_once() if once else contextlib.nullcontext():
                written = torch.onnx.export(
                    program, example, dynamo=True, verbose=False, input_names=inputs, optimize=False,
                    custom_translation_table=_translations() | (TRACED_ONCE if once else {}),
                )  # fmt: skip
            assert written is not None
            label_layers(written.model.graph)
            written.optimize()
        except Exception as error:
            raise StageError(refused + _why_unwritten(error)) from error
    given = program.call_spec.out_spec
    by_task = given is not None and given.type in (dict, OrderedDict, immutable_dict)
    tasks = tuple(map(str, given.context)) if given is not None and by_task else ()
    taken = sorted(set(tasks) & set(inputs))
    if taken:
        raise StageError(f"{refused}an output and an input are both called {taken[0]!r}; give the task another name")
    return written.model_proto, tasks


def _why_unwritten(error: BaseException) -> str:
    """The root cause without the text that torch puts around it, with the module and line of the operator."""
    cause, node = error, _translated(error)
    while cause.__cause__ is not None:
        cause = cause.__cause__
        node = node or _translated(cause)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    if isinstance(cause, ValueError):  # raised by one of KDQ's translations: it says what to do
        text = lines[0]
    else:
        text = f"{type(cause).__name__}: {lines[0]}; replace the operator by one that ONNX knows"
    return text if node is None else f"{text} ({_origin(node)})"


def _translated(error: BaseException) -> torch.fx.Node | None:
    """The node that torch was translating. Torch's errors name the node, but not its origin."""
    nodes = [frame.f_locals.get("node") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((node for node in nodes if isinstance(node, torch.fx.Node)), None)


def _origin(node: torch.fx.Node) -> str:
    """Operator, module path and line of the model's code for a node of an exported graph."""
    path = module_path(node)
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    frames = [frame for frame in frames if not frame[0].startswith(str(Path(torch.__file__).parent))]
    where = [f"module {path!r}"] if path else []
    return ", ".join([f"operator {node.target}", *where, *([":".join(frames[-1])] if frames else [])])


def _translations() -> dict[Any, Any]:
    return {
        quantize._opoverload: _quantize,
        dequantize._opoverload: _dequantize,
        dynamic_linear._opoverload: write_dynamic_linear,
        aten.mean.dim: _mean,
        **TRANSLATIONS,
    }


def _label(value: Any, label: str) -> Any:
    if label:
        value.producer().metadata_props[LABEL] = label
    return value


def _quantize(x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, label: str) -> Any:
    """Quantize, and clip the integers if the range is narrower than their type.

    Clipping integers keeps the kernels before it in int8. A float Clip before the quantization would make every conv
    float.
    """
    signed = zero_point.dtype.name == "INT8"
    least, greatest = (-128, 127) if signed else (0, 255)
    if not least <= qmin < qmax <= greatest:
        raise ValueError(f"the range {qmin}..{qmax} of {label!r} is not within its integers {least}..{greatest}")
    q = _label(op.QuantizeLinear(x, scale, zero_point), label)
    if (qmin, qmax) == (least, greatest):
        return q
    low, high = (_integer(value, signed) if value != end else None for value, end in ((qmin, least), (qmax, greatest)))
    return op.Clip(q, low, high)


def _integer(value: int, signed: bool) -> Any:
    kind = onnx.TensorProto.INT8 if signed else onnx.TensorProto.UINT8
    return op.Constant(value=onnx.helper.make_tensor("limit", kind, [], [value]))


def _dequantize(q: Any, scale: Any, zero_point: Any, axis: int, label: str) -> Any:
    if zero_point is None:
        return _label(op.DequantizeLinear(q, scale, axis=axis), label)
    return _label(op.DequantizeLinear(q, scale, zero_point, axis=axis), label)


def _mean(x: Any, dim: Any, keepdim: bool = False, dtype: int = -1) -> Any:
    """Write a mean over all positions of `[B, C, ...]` as global average pooling, which has an int8 kernel."""
    rank, dims = len(x.shape), sorted(d % len(x.shape) for d in dim)
    if rank > 2 and dims == list(range(2, rank)) and dtype in (-1, None):
        pooled = op.GlobalAveragePool(x)
        return pooled if keepdim else op.Flatten(pooled, axis=1)
    return op.ReduceMean(x, op.Constant(value_ints=dims), keepdims=int(keepdim))
