"""Prepare: put a fake-quantizer at every place that the target names."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import fx, nn

from kdq_core.errors import StageError
from kdq_core.quantization.capture import BatchNorm
from kdq_core.quantization.fake import FakeQuantize

if TYPE_CHECKING:
    from kdq_core.kinds import Place, Quantizer

HOLDER = "fake_quantizers"
PLACES = "kdq_places"


def prepare(graph: fx.GraphModule, places: Sequence[Place], quantizer: Quantizer) -> fx.GraphModule:
    """Insert fake-quantizers into a copy of a captured graph.

    Places that share another's grid get no module of their own: moving data leaves it on the grid. `convert` repeats
    the grid there.

    Args:
        graph: from `capture`.
        places: from `Target.places` of the same graph.
        quantizer: gives one fake-quantizer for each place.

    Returns:
        A graph module that trains; its ranges are buffers or parameters, present from the start.

    Raises:
        StageError: there is no place, or a place names a node that is not in the graph.
    """
    if not any(place.role == "weight" for place in places):
        raise StageError("the model has no layer that the target can quantize; it needs at least one conv or linear")
    prepared = copy.deepcopy(graph)
    nodes = {node.name: node for node in prepared.graph.nodes}
    holder = nn.ModuleDict()
    prepared.add_module(HOLDER, holder)
    for place in places:
        if place.node not in nodes:
            raise StageError(f"place {place.name!r} names node {place.node!r}, which is not in the graph")
        if place.shared_with is None:
            key = _key(place, holder)
            holder[key] = quantizer.fake_quantizer(place)
            _insert(prepared.graph, nodes[place.node], key)
    prepared.meta[PLACES] = tuple(places)
    prepared.recompile()
    return prepared.train(graph.training)


def _key(place: Place, holder: nn.ModuleDict) -> str:
    key = re.sub(r"\W+", "_", place.name)
    while key in holder:
        key += "_"
    return key


def _insert(graph: fx.Graph, node: fx.Node, key: str) -> None:
    users = list(node.users)
    with graph.inserting_after(node):
        call = graph.call_module(f"{HOLDER}.{key}", (node,))
    call.meta["val"] = node.meta.get("val")
    for user in users:
        user.replace_input_with(node, call)


def set_phase(model: nn.Module, *, observe: bool, quantize: bool, freeze_batch_norm: bool) -> None:
    """Switch all fake-quantizers and batch-norms of a prepared model.

    Args:
        model: from `prepare`.
        observe: ranges follow the data. Switch it off before scoring: observers do not know what eval mode is.
        quantize: values are rounded.
        freeze_batch_norm: running statistics stand still and are used also in training mode.
    """
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            module.observing, module.quantizing = observe, quantize
        elif isinstance(module, BatchNorm):
            module.frozen = freeze_batch_norm
