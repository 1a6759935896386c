"""Weights of few levels, packed in the file and decoded by the runtime when it loads it.

A weight of `n` levels is written as digits in base `n`, as many to a byte as fit. `Gather(table, Cast(packed))` gives
the int8 weights back: the table holds, for each byte, the levels of its digits. If there are seven levels, or more than
16, each number is split into several digits whose bits are joined. All decoder nodes work on constants. The runtime
folds them before it looks for quantized operators, and runs the same int8 kernels on the same integers. Only the number
of levels counts, not their values, so codebooks and powers of two are packed like any other weight. Folding a negative
batch-norm factor turns the sign of a channel, which can add levels. KDQ turns such channels back in the file, and reads
them from a second table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from kdq_targets.onnx_packed import IN_A_BYTE, SPLITS, PackedWeight
from kdq_targets.onnx_unpack import Decoders


def pack(graph: Any, most_levels: int) -> None:
    """Pack each int8 weight of at most `most_levels` levels (at most 128) if that makes the file smaller."""
    groups: dict[tuple[int, ...], list[PackedWeight]] = {}
    for tensor in graph.initializer:
        weight = plan(tensor, most_levels)
        if weight is not None and weight.saved > 0:
            groups.setdefault(weight.bases, []).append(weight)
    decoders = Decoders()
    packed: set[str] = set()
    for bases, weights in groups.items():
        tables = sum(base ** IN_A_BYTE[base] * IN_A_BYTE[base] for base in bases)
        if sum(weight.saved for weight in weights) > tables:
            packed |= {weight.name for weight in weights}
            for weight in weights:
                decoders.add(weight)
    kept = [tensor for tensor in graph.initializer if tensor.name not in packed]
    nodes = list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*kept, *decoders.constants.values()])
    graph.node.extend([*decoders.nodes.values(), *nodes])


def plan(tensor: Any, most_levels: int) -> PackedWeight | None:
    """Decide how to pack `tensor`; `None` if it is not an int8 weight of few levels."""
    if tensor.data_type != onnx.TensorProto.INT8 or len(tensor.dims) < 2:
        return None
    values = numpy_helper.to_array(tensor)
    turned = turned_channels(values)
    back = np.where(turned.reshape(-1, *[1] * (values.ndim - 1)), -values, values)
    size, turned_size = (_size(len(np.unique(each))) for each in (values, back))
    if turned_size in IN_A_BYTE and turned_size < size and values[0].size % IN_A_BYTE[turned_size] == 0:
        return PackedWeight(tensor.name, back, turned, np.unique(back), (turned_size,))
    if size > most_levels:
        return None
    return PackedWeight(tensor.name, values, None, np.unique(values), SPLITS.get(size, (size,)))


def _size(levels: int) -> int:
    """The least number of levels, `levels` or more, for which there is a way of packing; 256 if there is none."""
    return min(size for size in (*IN_A_BYTE, *SPLITS, 256) if levels <= size)


def turned_channels(values: np.ndarray) -> np.ndarray:
    """Choose greedily the channels (first axis) whose turned sign leaves fewer distinct integers: bool, `[C]`."""
    turned = np.zeros(len(values), dtype=bool)
    sets = [{int(value) for value in np.unique(channel)} for channel in values]
    levels: set[int] = set()
    for index in sorted(range(len(sets)), key=lambda index: -len(sets[index])):
        plain, other = sets[index], {-value for value in sets[index]}
        turned[index] = 128 not in other and len(other - levels) < len(plain - levels)
        levels |= other if turned[index] else plain
    return turned
