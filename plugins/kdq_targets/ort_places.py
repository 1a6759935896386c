"""Which tensors of a graph ONNX Runtime's int8 kernels want quantized.

An int8 kernel runs where all inputs and the output of an operator are quantized. Conv and linear bring their batch-norm
and activation along: only what comes out at the end gets a place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node

from kdq_core.api import BatchNorm, Dropout, Place

aten = torch.ops.aten

CONVS = {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
LINEARS = {aten.linear.default}
PAIRS = {aten.add.Tensor: "add", aten.mul.Tensor: "mul"}
POOLS = {
    aten.avg_pool1d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten.mean.dim,
}  # fmt: skip
ACTIVATIONS = {aten.relu.default, aten.relu6.default, aten.hardtanh.default}
MOVERS = {
    aten.max_pool1d.default, aten.max_pool2d.default, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
    aten.permute.default, aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.squeeze.default, aten.unflatten.int,
}  # fmt: skip
COPIES = {aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default}


def module_path(node: Node) -> str:
    """Path of the module whose forward made `node`; empty for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def operator_kind(node: Node) -> str | None:
    """`conv`, `linear`, `add`, `mul`, `pool`, `concat`, or `None` for what this target leaves alone."""
    target = cast(Any, node.target)
    if node.op != "call_function":
        return None
    if target in CONVS | LINEARS:
        return "conv" if target in CONVS else "linear"
    if target in PAIRS:
        pair = all(isinstance(arg, Node) and is_float(arg) for arg in node.args[:2])
        return PAIRS[target] if pair else None
    if target in POOLS:
        return "pool"
    return "concat" if target == aten.cat.default else None


def operator_name(node: Node) -> str:
    """`operator_kind`, else `input`, or the name of the ATen operator such as `sigmoid`."""
    if node.op == "placeholder":
        return "input"
    return operator_kind(node) or str(getattr(node.target, "_opname", node.target))


def is_float(node: Node) -> bool:
    """Whether `node` is a float tensor with a batch axis."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.dim() > 0


def weight_of(node: Node) -> Node | None:
    """The parameter of a conv or linear, or `None` where the weight is computed."""
    weight = node.args[1]
    return weight if isinstance(weight, Node) and weight.op == "get_attr" else None


class Finder:
    """Walks a captured graph.

    Args:
        graph: from `capture`.
        keep_float: module paths of operators that stay float.
        quantize_outputs: whether the model's outputs get a grid.
    """

    def __init__(self, graph: GraphModule, keep_float: Sequence[str], quantize_outputs: bool) -> None:
        self.graph, self.keep_float, self.quantize_outputs = graph, keep_float, quantize_outputs
        self.nodes = list(graph.graph.nodes)

    def operators(self) -> Iterator[tuple[Node, str, str]]:
        """Each operator with its kind and the reason why it stays float (empty where it is quantized)."""
        for node in self.nodes:
            kind = operator_kind(node)
            if kind is not None:
                yield node, kind, self._reason(node, kind)

    def _reason(self, node: Node, kind: str) -> str:
        path = module_path(node)
        if path in self.keep_float:
            return "left in float by a rule of the recipe"
        if kind in ("conv", "linear") and weight_of(node) is None:
            return "its weight is computed, not a parameter"
        return ""

    def source(self, node: Node) -> Node:
        """What `node` holds, before dropout and copies."""
        while (node.target in COPIES or self._calls(node, Dropout)) and isinstance(node.args[0], Node):
            node = node.args[0]
        return node

    def tail(self, node: Node) -> Node:
        """The end of operator, batch-norm and activation where nothing else reads in between."""
        steps: tuple[Callable[[Node], bool], ...] = (
            lambda n: self._calls(n, BatchNorm),
            lambda n: n.target in ACTIVATIONS,
        )
        for step in steps:
            users = list(node.users)
            if len(users) == 1 and step(users[0]):
                node = users[0]
        return node

    def _calls(self, node: Node, module: type) -> bool:
        return node.op == "call_module" and isinstance(self.graph.get_submodule(cast(str, node.target)), module)

    def wanted(self) -> set[Node]:
        """The tensors that get a grid of their own."""
        wanted: set[Node] = set()
        for node, kind, reason in self.operators():
            if reason:
                continue
            args: Any = node.args[0] if kind == "concat" else node.args[: 2 if kind in PAIRS.values() else 1]
            wanted |= {self.source(cast(Node, arg)) for arg in args}
            wanted.add(self.tail(node))
        for node in reversed(self.nodes):
            if node in wanted and node.target in MOVERS:
                wanted.add(self.source(cast(Node, node.args[0])))
        if not self.quantize_outputs:
            wanted -= {self.source(node) for node in self.graph.graph.output_node().all_input_nodes}
        return {node for node in wanted if is_float(node) and node.op != "get_attr"}

    def makers(self) -> dict[Node, Node]:
        """For the end of each operator, batch-norm and activation: the operator."""
        return {self.tail(node): node for node, _, _ in self.operators()}

    def weights(self) -> dict[Node, Node]:
        """Parameters to quantize, each with its first operator."""
        found: dict[Node, Node] = {}
        for node, kind, reason in self.operators():
            weight = weight_of(node) if kind in ("conv", "linear") and not reason else None
            if weight is not None:
                found.setdefault(weight, node)
        return found


def find_places(
    graph: GraphModule, *, keep_float: Sequence[str], quantize_outputs: bool, weight_limit: int
) -> tuple[Place, ...]:
    """Weights int8 symmetric per output channel within ±`weight_limit`; activations uint8 affine."""
    finder = Finder(graph, keep_float, quantize_outputs)
    wanted, weights, makers = finder.wanted(), finder.weights(), finder.makers()
    names: dict[Node, str] = {}
    made_by: dict[Node, Node] = {}
    places: list[Place] = []
    for node in finder.nodes:
        if node in weights:
            channels = int(node.meta["val"].shape[0]) if "val" in node.meta else None
            places.append(Place(
                name=str(node.target), role="weight", node=node.name, dtype="int8", qmin=-weight_limit,
                qmax=weight_limit, symmetric=True, axis=0, channels=channels or _channels(graph, node),
                path=module_path(weights[node]), operator=operator_name(weights[node]),
            ))  # fmt: skip
            continue
        moved = finder.source(cast(Node, node.args[0])) if node.target in MOVERS else None
        shared = names.get(moved) if moved is not None else None
        if node not in wanted and shared is None:
            continue
        name = _name(node)
        names[node] = shared or name
        made_by[node] = made_by[moved] if shared and moved is not None else makers.get(node, node)
        places.append(Place(
            name=name, role="activation", node=node.name, dtype="uint8", qmin=0, qmax=255, symmetric=False,
            shared_with=shared, path=module_path(made_by[node]), operator=operator_name(made_by[node]),
        ))  # fmt: skip
    return tuple(places)


def _channels(graph: GraphModule, node: Node) -> int:
    return int(graph.get_parameter(cast(str, node.target)).shape[0])


def _name(node: Node) -> str:
    if node.op == "placeholder":
        return f"{node.name}:input"
    path = module_path(node)
    return f"{path}.{node.name}:output" if path else f"{node.name}:output"
