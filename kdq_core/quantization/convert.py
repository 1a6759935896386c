"""Converts a prepared model to a graph of integers with quantize and dequantize operators, ready for export.

It folds a batch norm that directly follows a conv or linear layer and normalises its channels. Folding keeps the
simulated integers q: `W * gamma / sigma = (scale * |gamma / sigma|) * (sign(gamma) * q)`.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from kdq_core.errors import StageError
from kdq_core.grids.fake import FakeQuantize, Grid
from kdq_core.grids.place import Place
from kdq_core.quantization import ops  # noqa: F401  (registers kdq::quantize and kdq::dequantize)
from kdq_core.quantization.bias import RoundBias
from kdq_core.quantization.capture import Dropout
from kdq_core.quantization.constants import constant_value
from kdq_core.quantization.convert_recurrent import convert_recurrent
from kdq_core.quantization.dynamic import RoundDynamically
from kdq_core.quantization.layers import EMBEDDING, norm_behind, own_norm
from kdq_core.quantization.prepare import PLACES, RELU
from kdq_core.quantization.rows import look_up_tables

QUANTIZE = torch.ops.kdq.quantize.default
DEQUANTIZE = torch.ops.kdq.dequantize.default
DYNAMIC_LINEAR = torch.ops.kdq.dynamic_linear.default
BIAS_LIMIT = 2**30
"""Largest bias in integers: half of the int32 range; the other half is room for the products."""
LEAST_SCALE = torch.finfo(torch.float32).tiny * 2**24


class Grids(nn.Module):
    """Scales, zero points and integers of a converted model, by node name."""


@torch.no_grad()
def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """Make the integer model that a prepared model simulates. The prepared model stays as it is.

    Args:
        prepared: from `prepare`, with observed ranges.

    Returns:
        A graph module in eval mode. Its outputs equal those of `prepared` in eval mode, up to the rounding of the int32
        bias (step: input scale times weight scale).

    Raises:
        StageError: the model is not prepared, a place has seen no data or data that is not finite, or the quantizer's
            grid is not what the target asks for.
    """
    if PLACES not in prepared.meta:
        raise StageError("the model to convert is not prepared; call prepare() on its captured graph first")
    model = copy.deepcopy(prepared).eval()
    model.add_module("grids", Grids())
    _drop_training_only(model)
    look_up_tables(model)
    _Converter(model).run()
    model.graph.eliminate_dead_code()
    result = fx.GraphModule(model, model.graph, class_name=type(prepared).__name__)
    result.meta = dict(prepared.meta)
    for parameter in result.parameters():
        parameter.requires_grad_(False)
    return result.eval()


def _drop_training_only(model: fx.GraphModule) -> None:
    """Remove dropout and bias rounding, and give merged relus their own nodes again, under the old names."""
    for node in list(model.graph.nodes):
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, Dropout | RoundBias):
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
        elif isinstance(module, FakeQuantize) and module.relu:
            with model.graph.inserting_before(node):
                relu = model.graph.call_function(RELU, node.args)
            relu.meta, relu.name = dict(node.meta), module.place.node
            node.args, module.relu = (relu,), False


class _Converter:
    def __init__(self, model: fx.GraphModule) -> None:
        self.model, self.graph = model, model.graph
        self.places: tuple[Place, ...] = model.meta[PLACES]
        self.weight_only = all(place.role == "weight" for place in self.places)
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.scales: dict[fx.Node, Tensor] = {}
        self.roots: dict[str, tuple[Place, fx.Node, fx.Node]] = {}

    def run(self) -> None:
        for place in self.places:
            if place.role == "activation":
                self._activation(place)
        for place in self.places:
            if place.role == "weight" and place.operator not in ("lstm", "gru"):
                self._weight(place)
        convert_recurrent(self.model, self._buffer)

    def _call_of(self, place: Place) -> tuple[fx.Node, FakeQuantize]:
        for user in self.nodes[place.node].users:
            module = self.model.get_submodule(user.target) if user.op == "call_module" else None
            if isinstance(module, FakeQuantize):
                return user, module
        raise StageError(f"place {place.name!r} has lost its fake-quantizer; convert the module that prepare() gave")

    def _buffer(self, name: str, value: Tensor) -> fx.Node:
        """Give a constant at the start of the graph; a constant of that name that exists is reused."""
        holder = self.model.get_submodule("grids")
        target = f"grids.{name}"
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target == target:
                return cast(fx.Node, node)
        holder.register_buffer(name, value)
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            return self.graph.get_attr(target)

    def _activation(self, place: Place) -> None:
        node = self.nodes[place.node]
        if place.shared_with is None:
            call, module = self._call_of(place)
            grid = _checked(place, module)
            dtype = torch.uint8 if place.dtype == "uint8" else torch.int8
            scale = self._buffer(f"{node.name}_scale", grid.scale.to(torch.float32))
            zero = self._buffer(f"{place.dtype}_{int(grid.zero_point)}", grid.zero_point.to(dtype))
            self.roots[place.name] = (place, scale, zero)
            last = self._pair(call, node, place, scale, zero)
            call.replace_all_uses_with(last, delete_user_cb=lambda user: user.target is not QUANTIZE)
            self.graph.erase_node(call)
            self.scales[last] = grid.scale
        else:
            _, scale, zero = self.roots[place.shared_with]
            users = list(node.users)
            last = self._pair(node, node, place, scale, zero)
            for user in users:
                user.replace_input_with(node, last)
            self.scales[last] = cast(Tensor, operator.attrgetter(cast(str, scale.target))(self.model))

    def _pair(self, after: fx.Node, node: fx.Node, place: Place, scale: fx.Node, zero: fx.Node) -> fx.Node:
        with self.graph.inserting_after(after):
            args = (node, scale, zero, place.qmin, place.qmax, node.name)
            q = self.graph.call_function(QUANTIZE, args)
        with self.graph.inserting_after(q):
            return self.graph.call_function(DEQUANTIZE, (q, scale, zero, 0, ""))

    def _weight(self, place: Place) -> None:
        call, module = self._call_of(place)
        grid, weight = _checked(place, module, grouped=self.weight_only), self._value(self.nodes[place.node])
        channels = [-1 if dim == (place.axis or 0) else 1 for dim in range(weight.dim())]
        for op in list(call.users):
            self._operator(place, op, grid, _counted(place, module.integers(weight)), channels)
        self.graph.erase_node(call)

    def _operator(self, place: Place, op: fx.Node, grid: Grid, q: Tensor, channels: list[int]) -> None:
        if grid.axis is None:  # an embedding's table that is also a linear layer's weight: one scale for all
            count = int(q.shape[1 if op.target is EMBEDDING else 0])
            grid = replace(grid, scale=grid.scale.expand(count), zero_point=grid.zero_point.expand(count))
        if op.target is EMBEDDING:
            (self._float_table if place.weight_only else self._table)(op, grid, q)
            return
        source = cast(fx.Node, op.args[0])
        if source.op == "call_module" and isinstance(self.model.get_submodule(str(source.target)), RoundDynamically):
            self._dynamic(op, cast(fx.Node, source.args[0]), q, *self._folded(op, grid, q, channels))
            return
        input_scale = None if place.weight_only else self.scales.get(source)
        if input_scale is None and (self.weight_only or place.weight_only):
            scale, bias = self._folded(op, grid, q, channels)
            scale = scale.reshape(len(scale), -1)  # a scale per channel becomes one part per channel
            self._write(place, op, q, scale.clamp(min=LEAST_SCALE), bias, None)
            return
        if input_scale is None:
            raise StageError(
                f"operator {op.name!r} has a quantized weight and a float input; the target must place both"
            )
        scale, bias = self._folded(op, grid, q, channels)
        if bias is not None:
            scale, q = _fit_bias(scale, q, bias, input_scale, channels, grid)
        self._write(place, op, q, scale.clamp(min=LEAST_SCALE), bias, input_scale)

    def _dynamic(self, op: fx.Node, x: fx.Node, q: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """Convert a linear layer whose input the runtime rounds to the range that it measures."""
        weight = self._buffer(f"{op.name}_weight", q.to(torch.int8))
        scales = self._buffer(f"{op.name}_weight_scale", scale.clamp(min=LEAST_SCALE).float())
        whole = None if bias is None else self._buffer(f"{op.name}_bias", bias.float())
        with self.graph.inserting_before(op):
            linear = self.graph.call_function(DYNAMIC_LINEAR, (x, weight, scales, whole, op.name))
        op.replace_all_uses_with(linear)
        self.graph.erase_node(op)

    def _table(self, op: fx.Node, grid: Grid, q: Tensor) -> None:
        """Let an embedding look up integers, and dequantize them behind it with one scale per column."""
        table = self._buffer(f"{op.name}_weight", q.to(torch.int8))
        scales = self._buffer(f"{op.name}_weight_scale", grid.scale.float().clone())
        zeros = self._buffer(f"zeros_{grid.scale.numel()}", torch.zeros_like(grid.scale, dtype=torch.int8))
        op.args = (table, *op.args[1:])
        last = op.meta["val"].dim() - 1
        with self.graph.inserting_after(op):
            wide = self.graph.call_function(DEQUANTIZE, (op, scales, zeros, last, op.name))
        op.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)

    def _float_table(self, op: fx.Node, grid: Grid, q: Tensor) -> None:
        """Let an embedding look up floats; its integers are stored by column, each with its scale."""
        table = self._buffer(f"{op.name}_weight", q.T.to(torch.int8).contiguous())
        scales = self._buffer(f"{op.name}_weight_scale", grid.scale.float()[:, None].clone())
        with self.graph.inserting_before(op):
            columns = self.graph.call_function(DEQUANTIZE, (table, scales, None, 0, op.name))
            rows = self.graph.call_function(torch.ops.aten.t.default, (columns,))
        op.args = (rows, *op.args[1:])

    def _value(self, node: Any) -> Tensor:
        return constant_value(self.model, node).detach()

    def _folded(self, op: fx.Node, grid: Grid, q: Tensor, channels: list[int]) -> tuple[Tensor, Tensor | None]:
        """Fold a batch norm that directly follows; give scale `[C]` and bias `[C]` (float64). `q` takes its signs."""
        arg = op.args[2] if len(op.args) > 2 else None
        bias = self._value(arg).double() if arg is not None else None
        scale = grid.scale.double()
        after, module = own_norm(self.model, op), norm_behind(self.model, op)
        if after is None or module is None:
            return scale, bias
        factor = module.factor()
        bias = module.offset() + ((0.0 if bias is None else bias) - module.running_mean.double()) * factor
        q.mul_(factor.sign().reshape(channels))
        after.replace_all_uses_with(op)
        self.graph.erase_node(after)
        return scale * factor.abs().reshape([-1] + [1] * (scale.dim() - 1)), bias

    def _write(
        self, place: Place, op: fx.Node, q: Tensor, scale: Tensor, bias: Tensor | None, input_scale: Tensor | None
    ) -> None:
        weight = self._buffer(f"{op.name}_weight", q.to(torch.int8))
        scales = self._buffer(f"{op.name}_weight_scale", scale.float())
        zeros = None
        if input_scale is not None:
            zeros = self._buffer(f"zeros_{scale.numel()}", torch.zeros_like(scale, dtype=torch.int8))
        with self.graph.inserting_before(op):
            wide = self.graph.call_function(DEQUANTIZE, (weight, scales, zeros, place.axis or 0, op.name))
        args = [op.args[0], wide, *op.args[2:]]
        if bias is not None and input_scale is None:
            args[2:3] = [self._buffer(f"{op.name}_bias", bias.float())]
        elif bias is not None and input_scale is not None:
            step = input_scale.float() * scale.float()
            integers = bias.div(step.double()).round().clamp(-BIAS_LIMIT, BIAS_LIMIT).to(torch.int32)
            bias_q = self._buffer(f"{op.name}_bias", integers)
            steps = self._buffer(f"{op.name}_bias_scale", step)
            with self.graph.inserting_before(op):
                args[2:3] = [self.graph.call_function(DEQUANTIZE, (bias_q, steps, None, 0, ""))]
        op.args = tuple(args)


def _checked(place: Place, module: FakeQuantize, *, grouped: bool = False) -> Grid:
    """Give the grid of a place after checks: finite, positive, of the right shape, within the kernels' integers."""
    grid = module.grid()
    if not bool((grid.scale.isfinite() & (grid.scale > 0)).all()):
        raise StageError(
            f"place {place.name!r} has a scale that is not a positive number; look for NaN or infinity in the data, "
            "and let it observe at least one batch"
        )
    wanted: tuple[int | None, ...] = () if place.axis is None else (place.channels,)
    if grouped and tuple(grid.scale.shape[:1]) == wanted and place.axis == 0 and grid.scale.dim() == 2:
        wanted = tuple(grid.scale.shape)
    if grid.axis != place.axis or tuple(grid.scale.shape) != wanted or grid.scale.shape != grid.zero_point.shape:
        raise StageError(
            f"the quantizer's grid for place {place.name!r} has shape {tuple(grid.scale.shape)!r} "
            f"and axis {grid.axis!r}; the target asks for {wanted!r} and {place.axis!r}"
        )
    weight = place.role == "weight"
    low, high = place.kernel_range if weight else (place.qmin, place.qmax)
    if not (low <= grid.qmin < grid.qmax <= high if weight else (grid.qmin, grid.qmax) == (low, high)):
        raise StageError(
            f"the quantizer's grid for place {place.name!r} has integers {grid.qmin}..{grid.qmax}; "
            f"the target asks for {low}..{high}"
        )
    return grid


def _counted(place: Place, q: Tensor) -> Tensor:
    """Give the integers of a weight after a check that they have no more levels than its bits allow."""
    levels = len(torch.unique(q)) if place.bits < 8 else 0
    if levels > 2**place.bits:
        raise StageError(
            f"the quantizer gives place {place.name!r} {levels} levels; with {place.bits} bits it can have "
            f"{2**place.bits} at most"
        )
    return q


def _fit_bias(
    scale: Tensor, q: Tensor, bias: Tensor, input_scale: Tensor, channels: list[int], grid: Grid
) -> tuple[Tensor, Tensor]:
    """Widen the scale of channels whose bias would exceed int32; their weights are tiny beside that bias."""
    least = bias.abs() / (input_scale.double() * BIAS_LIMIT)
    wider = torch.maximum(scale, least.clamp(min=LEAST_SCALE))
    shrink = torch.where(scale < wider, scale / wider, 1.0)
    return wider, (q.double() * shrink.reshape(channels)).round().clamp(grid.qmin, grid.qmax).to(q.dtype)


def output_scales(converted: fx.GraphModule) -> tuple[float | None, ...]:
    """Give the LSB of each output of a converted model; `None` for a float output."""
    value: Any = converted.graph.output_node().args[0]
    value = tuple(value.values()) if isinstance(value, Mapping) else value
    outputs = value if isinstance(value, tuple | list) else (value,)
    return tuple(
        float(operator.attrgetter(node.args[1].target)(converted)) if node.target is DEQUANTIZE else None
        for node in outputs
    )
