"""Prepares a captured graph: inserts a fake-quantizer at every place."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from kdq_core.errors import StageError
from kdq_core.grids.fake import FakeQuantize
from kdq_core.quantization.bias import RoundBias, insert_bias_rounding
from kdq_core.quantization.capture import BatchNorm, Dropout
from kdq_core.quantization.constants import constant_value
from kdq_core.quantization.dynamic import RoundDynamically, insert_dynamic_rounding
from kdq_core.quantization.layers import weight_readers
from kdq_core.quantization.placing import NO_LAYER
from kdq_core.quantization.recurrent import Recurrent
from kdq_core.quantization.rows import LookUp, look_up_rows

if TYPE_CHECKING:
    from kdq_core.grids.place import Place
    from kdq_core.plugins.kinds import Quantizer

HOLDER = "fake_quantizers"
PLACES = "kdq_places"
RELU = torch.ops.aten.relu.default


def prepare(
    graph: fx.GraphModule, places: Sequence[Place], quantizer: Quantizer, *, round_bias: bool = False
) -> fx.GraphModule:
    """Insert fake-quantizers into a copy of a captured graph.

    A place that shares another place's grid gets no fake-quantizer: its operator only moves data that is on the grid
    already. `convert` repeats the grid there. A relu whose result is fake-quantized becomes part of the fake-quantizer.

    Args:
        graph: from `capture`.
        places: from `Target.places` of the same graph.
        quantizer: gives one fake-quantizer for each place.
        round_bias: whether to round biases as the integer model will, while batch norm is frozen.

    Returns:
        A graph module that trains; its ranges are buffers or parameters, present from the start.

    Raises:
        StageError: no place is a weight, or a place names a node that is not in the graph.
    """
    if not any(place.role == "weight" for place in places):
        raise StageError(NO_LAYER)
    prepared = copy.deepcopy(graph)
    nodes = {node.name: node for node in prepared.graph.nodes}
    weights = [place for place in places if place.role == "weight" and not place.weight_only]
    in_int8 = {user.name for place in weights for user in nodes[place.node].users}
    holder = nn.ModuleDict()
    prepared.add_module(HOLDER, holder)
    for place in places:
        if place.node not in nodes:
            raise StageError(f"place {place.name!r} names node {place.node!r}, which is not in the graph")
        if place.shared_with is None:
            key = _key(place, holder)
            fake = quantizer.fake_quantizer(_shaped(place, nodes[place.node]))
            holder[key] = fake
            _insert(prepared, nodes[place.node], key, fake)
    if quantizer.activations == "dynamic":
        names = {place.node for place in places if place.role == "weight"}
        users = (user for name in names for user in nodes[name].users)
        insert_dynamic_rounding(prepared, {user for user in users if user.op == "call_module"})
    if round_bias:
        insert_bias_rounding(prepared, places)
    look_up_rows(prepared)
    for node in prepared.graph.nodes:
        module = prepared.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, Recurrent):
            module.rounds_state = node.name in in_int8 and _is_rounded(prepared, node.args[0])
    prepared.meta[PLACES] = tuple(places)
    prepared.recompile()
    return prepared.train(graph.training)


def _shaped(place: Place, node: fx.Node) -> Place:
    value = node.meta.get("val")
    return place if place.role == "activation" or value is None else replace(place, shape=tuple(value.shape))


def _is_rounded(prepared: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether the values of `node` are on a grid in eval mode: they come from a fake-quantizer, perhaps moved."""
    module = prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
    if node.all_input_nodes and (node.op == "call_function" or isinstance(module, Dropout)):
        return _is_rounded(prepared, node.all_input_nodes[0])
    return isinstance(module, FakeQuantize | LookUp)


def _key(place: Place, holder: nn.ModuleDict) -> str:
    key = re.sub(r"\W+", "_", place.name)
    while key in holder:
        key += "_"
    return key


def _insert(model: fx.GraphModule, node: fx.Node, key: str, module: FakeQuantize) -> None:
    graph = model.graph
    users = weight_readers(model, node) if module.place.role == "weight" else list(node.users)
    with graph.inserting_after(node):
        call = graph.call_module(f"{HOLDER}.{key}", (node,))
    call.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, call)
    if node.target == RELU and type(module).forward is FakeQuantize.forward:  # other forwards may ignore a merged relu
        module.relu = True
        call.args = node.args
        graph.erase_node(node)


def weights_of(prepared: fx.GraphModule) -> Iterator[tuple[Callable[[], Tensor], FakeQuantize]]:
    """Yield the quantized weights of a prepared graph, each with its fake-quantizer.

    A weight may be computed from parameters: its function gives its value now, with a gradient.
    """
    for node in prepared.graph.nodes:
        module = prepared.get_submodule(node.target) if node.op == "call_module" else None
        fake = module.fake if isinstance(module, LookUp) else module
        if isinstance(fake, FakeQuantize) and fake.place.role == "weight":
            yield partial(constant_value, prepared, node.args[0]), fake


def set_phase(model: nn.Module, *, observe: bool, quantize: bool, freeze_batch_norm: bool) -> None:
    """Switch all fake-quantizers and batch norms of a prepared model.

    Args:
        model: from `prepare`.
        observe: whether ranges follow the data. Switch it off before scoring: eval mode does not stop observers.
        quantize: whether values are rounded.
        freeze_batch_norm: whether running statistics stay fixed, and training mode normalises with them too.
    """
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            module.observing, module.quantizing = observe, quantize
        elif isinstance(module, RoundDynamically):
            module.quantizing = quantize
        elif isinstance(module, BatchNorm):
            module.frozen = freeze_batch_norm
        elif isinstance(module, RoundBias):
            module.rounding = quantize and freeze_batch_norm
