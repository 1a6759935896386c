"""Look-ups of embeddings in the forms that ONNX Runtime computes fastest. They change no value.

Tables whose rows are concatenated hold integers on the grid of the concatenation, so that nothing is quantized again in
a call; tables of one shape become one table, read once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from kdq_targets.onnx_view import View


def join_tables(graph: Any) -> None:
    """Put tables that are concatenated on the grid of the result, and join those of one shape, in place."""
    rewriter = _Tables(graph)
    for node in list(graph.node):
        if node.op_type == "Concat" and any(item.name == "axis" and item.i in (1, -1) for item in node.attribute):
            rewriter.move(node)
            rewriter.join(node)
    rewriter.view.finish()


class _Tables:
    def __init__(self, graph: Any) -> None:
        self.view = View(graph)
        self.makers, self.tensors, self.readers = self.view.makers, self.view.tensors, self.view.readers

    def move(self, concat: Any) -> None:
        """Put the tables of a concatenation on the grid that its result is quantized to."""
        readers = self.readers.get(concat.output[0], [])
        behind = readers[0] if len(readers) == 1 else None
        grid = self._grid(behind, "QuantizeLinear")
        if grid is None or behind is None:
            return
        scale, zero = grid
        kind = np.iinfo(zero.dtype)
        for value in concat.input:
            wide, look_up = self._looked_up(value)
            own = self._grid(wide, "DequantizeLinear")
            if own is None or own[1].dtype != zero.dtype:
                continue
            table = numpy_helper.to_array(self.tensors[look_up.input[0]])
            floats = (table.astype(np.int32) - own[1].astype(np.int32)).astype(np.float32) * own[0]
            integers = np.clip(np.rint(floats / scale) + zero.astype(np.float32), kind.min, kind.max)
            tensor = numpy_helper.from_array(integers.astype(zero.dtype), look_up.input[0])
            self.tensors[look_up.input[0]].CopyFrom(tensor)
            wide.input[1:] = behind.input[1:3]

    def join(self, concat: Any) -> None:
        """Read neighbouring tables of one shape, each with a column of the same indices, as one table."""
        inputs: list[str] = []
        run: list[str] = []
        for value in (*concat.input, ""):
            if run and (not value or self._kind(value) is None or self._kind(value) != self._kind(run[0])):
                inputs += [self._joined(concat, run)] if len(run) > 1 else run
                run = []
            if value and self._kind(value) is not None:
                run.append(value)
            elif value:
                inputs.append(value)
        concat.input[:] = inputs

    def _looked_up(self, value: str) -> tuple[Any, Any]:
        """The dequantization and the look-up that make `value`, if nothing else reads them or the table."""
        wide = self.makers.get(value)
        look_up = self.makers.get(wide.input[0]) if wide is not None and wide.op_type == "DequantizeLinear" else wide
        if look_up is None or look_up.op_type != "Gather" or look_up.input[0] not in self.tensors:
            return None, None
        if any(item.name == "axis" and item.i for item in look_up.attribute):
            return None, None
        alone = all(len(self.readers[name]) == 1 for name in (value, look_up.output[0], look_up.input[0]))
        return (wide, look_up) if alone else (None, None)

    def _grid(self, node: Any, kind: str) -> tuple[Any, Any] | None:
        """Scale and zero point of a node that is of this kind and has one of each for all values."""
        if node is None or node.op_type != kind or len(node.input) < 3:
            return None
        found = [self.tensors.get(name) for name in node.input[1:3]]
        if any(one is None or one.dims for one in found):
            return None
        scale, zero = (numpy_helper.to_array(one) for one in found)
        return scale, zero

    def _kind(self, value: str) -> tuple[Any, ...] | None:
        """What tables have in common that may be joined: shape, type, grid and indices `[B, C]`; else `None`."""
        wide, look_up = self._looked_up(value)
        column = None if look_up is None else self.makers.get(look_up.input[1])
        if (
            column is None
            or column.op_type != "Gather"
            or not any(i.name == "axis" and i.i == 1 for i in column.attribute)
        ):
            return None
        which, given = self.tensors.get(column.input[1]), self._rank(column.input[0])
        table = self.tensors[look_up.input[0]]
        if which is None or which.dims or given != 2 or len(table.dims) != 2:
            return None
        grid = tuple(wide.input[1:3]) if wide.op_type == "DequantizeLinear" else ()
        if wide.op_type == "DequantizeLinear" and self._grid(wide, "DequantizeLinear") is None:
            return None
        return tuple(table.dims), table.data_type, grid, column.input[0]

    def _rank(self, name: str) -> int:
        given = next((value for value in self.view.graph.input if value.name == name), None)
        integers = given is not None and given.type.tensor_type.elem_type == TensorProto.INT64
        return len(given.type.tensor_type.shape.dim) if given is not None and integers else 0

    def _joined(self, concat: Any, values: list[str]) -> str:
        """Write one look-up for several. An index that a table does not have fails as before, in the first Gather."""
        found = [self._looked_up(value) for value in values]
        columns = [self.makers[look_up.input[1]] for _, look_up in found]
        tables = [numpy_helper.to_array(self.tensors[look_up.input[0]]) for _, look_up in found]
        rows, width = tables[0].shape
        name, count = f"{values[0]}_joined", len(values)
        which = np.array([int(numpy_helper.to_array(self.tensors[column.input[1]])) for column in columns])
        for part, value in (
            ("columns", which), ("first", np.array(0)), ("count", np.array(rows)), ("step", np.array(1)),
            ("offsets", rows * np.arange(count)), ("table", np.concatenate(tables)),
            ("shape", np.array([-1, count * width])),
        ):  # fmt: skip
            self.view.add(f"{name}_{part}", value)
        make, wide = helper.make_node, found[0][0]
        nodes = [
            make("Range", [f"{name}_first", f"{name}_count", f"{name}_step"], [f"{name}_known"]),
            make("Gather", [columns[0].input[0], f"{name}_columns"], [f"{name}_given"], axis=1),
            make("Gather", [f"{name}_known", f"{name}_given"], [f"{name}_rows"]),
            make("Add", [f"{name}_rows", f"{name}_offsets"], [f"{name}_index"]),
            make("Gather", [f"{name}_table", f"{name}_index"], [f"{name}_cut"], name="".join(g.name for _, g in found)),
            make("Reshape", [f"{name}_cut", f"{name}_shape"], [f"{name}_q"]),
        ]
        if wide.op_type == "DequantizeLinear":
            nodes.append(make("DequantizeLinear", [f"{name}_q", *wide.input[1:3]], [name]))
        else:
            nodes[-1].output[0] = name
        self.view.before.setdefault(id(concat), []).extend(nodes)
        return name
