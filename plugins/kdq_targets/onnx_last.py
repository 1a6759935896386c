"""Read the last step of a recurrent layer from its state, where nothing reads the other steps.

The runtime then neither writes nor transposes nor rounds the outputs of all steps. The values are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kdq_targets.onnx_parts import Parts, drop_unread, find_constant
from kdq_targets.onnx_view import View, attribute, perm_of

RECURRENT = ("LSTM", "GRU", "RNN")
ROUNDING = ("QuantizeLinear", "DequantizeLinear", "Clip")


def read_last_states(graph: Any) -> None:
    """Rewrite each layer of one direction in a fresh graph whose outputs are read at the last step alone, in place."""
    parts = Parts(graph)
    readers = View(graph).readers
    made: dict[int, list[Any]] = {}
    for node in graph.node:
        links = _links(node, readers, parts) if node.op_type in RECURRENT else None
        if links is None:
            continue
        *kept, select = [link for link in links if link.op_type in (*ROUNDING, "Gather")]
        parts.begin(node, "")
        last = _last_state(node)
        axis = parts.constant("last_axis", np.array([0]))
        value = parts.add("Squeeze", [last, axis])
        made[id(node)] = list(parts.nodes)
        for link in kept:
            link.input[0] = value
            value = link.output[0]
        for reader in readers[select.output[0]]:
            reader.input[:] = [value if name == select.output[0] else name for name in reader.input]
        node.output[0] = ""
    if made:
        nodes = [new for node in graph.node for new in (node, *made.get(id(node), ()))]
        del graph.node[:]
        graph.node.extend(nodes)
        drop_unread(graph)


def _links(node: Any, readers: dict[str, list[Any]], parts: Parts) -> list[Any] | None:
    """The nodes from the outputs `[T, 1, B, H]` to the look-up of the last step; `None` if others read them."""
    links: list[Any] = []
    value = str(node.output[0])
    other = any((i.name == "direction" and i.s != b"forward") or (i.name == "layout" and i.i) for i in node.attribute)
    if other or not value or (len(node.input) > 4 and node.input[4]):  # an input that gives each sample its length
        return None
    while not links or links[-1].op_type != "Gather":
        found = readers.get(value, [])
        if len(found) != 1 or found[0] is None or found[0].input[0] != value:
            return None
        links.append(found[0])
        value = str(found[0].output[0])
    if None in readers.get(value, [None]):
        return None
    kinds = [link.op_type for link in links if link.op_type not in ROUNDING]
    perms = [perm_of(link) for link in links if link.op_type == "Transpose"]
    batch_first = kinds == ["Transpose", "Reshape", "Transpose", "Gather"] and perms == [(0, 2, 1, 3), (1, 0, 2)]
    if not batch_first and (kinds != ["Transpose", "Reshape", "Gather"] or perms != [(0, 2, 1, 3)]):
        return None
    shape = find_constant(parts, next(link for link in links if link.op_type == "Reshape").input[1])
    index = find_constant(parts, links[-1].input[1])
    axis = attribute(links[-1], "axis", 0)
    if index is None or index.ndim or int(index) != -1 or axis != int(batch_first) or shape is None:
        return None
    same = list(shape[:2]) == [0, 0] and len(shape) == 3
    grids = [link for link in links if link.op_type in ROUNDING[:2]]
    scalar = all((scale := find_constant(parts, link.input[1])) is not None and scale.size == 1 for link in grids)
    return links if same and scalar else None


def _last_state(node: Any) -> str:
    """The name of the last state `[1, B, H]`; it is an output of the layer from now on."""
    if len(node.output) < 2:
        node.output.append("")
    node.output[1] = node.output[1] or f"{node.output[0]}_state"
    return str(node.output[1])
