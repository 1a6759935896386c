"""Find the tensors of a graph that ONNX Runtime's int8 kernels want quantized.

Conv, linear and recurrent layers need a quantized input. A conv also needs a quantized output, because no kernel gives
floats. Additions, pooling and similar operators are int8 if their result is wanted in int8 and one of their inputs
comes from an int8 operator; between float operators they stay float. A conv or linear takes its batch norm and
activation into its kernel: only the result of the whole chain gets a place.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

from torch.fx import GraphModule, Node

from kdq_core.api import Attention, BatchNorm, Dropout, Place, Recurrent, module_path, own_norm
from kdq_targets.onnx_operators import (
    COPIES,
    FOLDED,
    FOLLOWERS,
    SPLITS,
    SWALLOWED,
    inputs_of,
    is_float,
    moves_data,
    operator_kind,
    weight_of,
    why_float,
)  # fmt: skip
from kdq_targets.onnx_products import at_batch_1, constant_factor, product_macs

WIDE = ("conv", "linear", "lstm", "gru")
"""Kinds that multiply matrices in int8."""
WEIGHING = ("conv", "linear", "conv_transpose", "bilinear")
"""Kinds with one weight whose first axis is the channels of the output, or of the input if it is transposed."""
MODULES: dict[type, str] = {Attention: "attention", BatchNorm: "batch_norm"}


class Finder:
    """Walks a captured graph.

    Args:
        graph: from `capture`.
        keep_float: operators that stay float, as `path:type`; operators of the model itself have no path, as in `:add`.
        quantize_outputs: whether the model's outputs get a grid.
        weight_only: operators that compute in float with integer weights, as `path:type`, or types of operator.
    """

    def __init__(
        self, graph: GraphModule, keep_float: Sequence[str], quantize_outputs: bool, weight_only: Sequence[str] = ()
    ) -> None:
        self.graph, self.keep_float, self.quantize_outputs = graph, keep_float, quantize_outputs
        self.weight_only = frozenset(weight_only)
        self.nodes = list(graph.graph.nodes)

    def kind(self, node: Node) -> str | None:
        """Return the type of an operator, or `None` for a node that computes nothing."""
        if node.op != "call_module":
            return operator_kind(node)
        module = self.graph.get_submodule(cast(str, node.target))
        if isinstance(module, Recurrent):
            return module.kind
        return next((name for known, name in MODULES.items() if isinstance(module, known)), None)

    @cached_property
    def kinds(self) -> dict[Node, str]:
        """Return each operator with its type, without batch norms and activations that others take in."""
        kinds = {node: kind for node in self.nodes if (kind := self.kind(node)) is not None}
        taken = {part for node, kind in kinds.items() if kind in ("conv", "linear") for part in self._chain(node)[1:]}
        taken |= {part for node, kind in kinds.items() if kind in FOLLOWERS for part in self._chain(node)[1:]}
        return {node: kind for node, kind in kinds.items() if node not in taken}

    def operators(self) -> Iterator[tuple[Node, str, str]]:
        """Yield each operator with its type and the reason why it stays float (empty if it is quantized)."""
        wanted = self.wanted
        for node, kind in self.kinds.items():
            reason = self._reason(node, kind)
            if not reason and self.computes_float(node, kind):
                option = kind if kind in self.weight_only else "weight_only"
                reason = f"weight-only, as the option {option!r} of the target says: int8 weights, float arithmetic"
            if not reason and kind in FOLLOWERS and node not in self._int8:
                reason = "its result goes to float operators only"
                if self.tail(node) in wanted:
                    reason = "its inputs come from float operators"
            yield node, kind, reason

    def _reason(self, node: Node, kind: str) -> str:
        if f"{module_path(node)}:{kind}" in self.keep_float:
            return "left in float by a rule of the recipe"
        if kind in ("lstm", "gru"):
            module = cast(Recurrent, self.graph.get_submodule(cast(str, node.target)))
            return module.why_float(node)
        return why_float(node, kind)

    def computes_float(self, node: Node, kind: str) -> bool:
        """Whether a layer computes in float with integer weights; of layers that share a weight, all must."""
        if not self.weight_only:
            return False
        weight = weight_of(node) if kind in ("conv", "linear", "embedding") else None
        layers = [node] if weight is None else [one for one in weight.users if one in self.kinds]
        return all({self.kinds[one], f"{module_path(one)}:{self.kinds[one]}"} & self.weight_only for one in layers)

    def source(self, node: Node) -> Node:
        """Return the node whose value `node` holds, skipping dropout and copies."""
        while (node.target in COPIES or self._calls(node, Dropout)) and isinstance(node.args[0], Node):
            node = node.args[0]
        return node

    def moved(self, node: Node) -> Node | None:
        """Return the tensor that a mover of data moves, or `None` for another operator."""
        if moves_data(node):
            return self.source(cast(Node, node.args[0]))
        if node.target is operator.getitem and cast(Node, node.args[0]).target in SPLITS:
            return self.source(cast(Node, cast(Node, node.args[0]).args[0]))
        return None

    def tail(self, node: Node) -> Node:
        """Return the last node of operator, batch norm and activation, if nothing else reads in between."""
        return self._chain(node)[-1]

    def _chain(self, node: Node) -> list[Node]:
        steps: tuple[Callable[[Node], bool], ...] = (
            lambda n: n is own_norm(self.graph, node),
            lambda n: n.target in FOLDED,
        )
        chain = [node]
        for step in steps:
            users = list(chain[-1].users)
            if len(users) == 1 and step(users[0]):
                chain.append(users[0])
        return chain

    def _calls(self, node: Node, module: type) -> bool:
        return node.op == "call_module" and isinstance(self.graph.get_submodule(cast(str, node.target)), module)

    @cached_property
    def makers(self) -> dict[Node, Node]:
        """Map the last node of each chain of operator, batch norm and activation to the operator."""
        return {self.tail(node) if kind in (*WIDE, *FOLLOWERS) else node: node for node, kind in self.kinds.items()}

    @cached_property
    def wanted(self) -> set[Node]:
        """Return the tensors that get a grid: their own, or that of the tensor they move."""
        self._int8: set[Node] = set()
        self._wanted: set[Node] = set()
        outputs = {self.source(node) for node in self.graph.graph.output_node().all_input_nodes}
        for node, kind in self.kinds.items():
            if kind not in WIDE or self._reason(node, kind) or self.computes_float(node, kind):
                continue
            self._want(inputs_of(node, kind)[0])
            tail = self.tail(node)
            swallowed = len(tail.users) == 1 and next(iter(tail.users)).target in SWALLOWED
            if kind == "conv" or (kind == "linear" and (tail.target in FOLDED or swallowed)):
                self._want(tail)
        if self.quantize_outputs:
            for node in outputs:
                if self._native(node) and not self._embedded(node):
                    self._want(node)
            return self._wanted
        return self._wanted - outputs

    def _embedded(self, node: Node) -> bool:
        moved = self.moved(node)
        return self.kinds.get(node) == "embedding" if moved is None else self._embedded(moved)

    def _want(self, node: Node) -> None:
        """Mark `node` as wanted in int8, and with it the inputs of its operator."""
        node = self.source(node)
        if node in self._wanted or not is_float(node) or node.op == "get_attr":
            return
        self._wanted.add(node)
        moved = self.moved(node)
        if moved is not None:
            self._want(moved)
            return
        maker = self.makers.get(node)
        kind = self.kinds.get(maker) if maker is not None else None
        if maker is None or kind not in FOLLOWERS or self._reason(maker, kind):
            return
        if any(self._native(arg) for arg in inputs_of(maker, kind)):
            self._int8.add(maker)
            for arg in inputs_of(maker, kind):
                self._want(arg)

    def _native(self, node: Node) -> bool:
        """Whether `node` comes from an operator with an int8 kernel, or is an input of the model."""
        node = self.source(node)
        if node.op == "placeholder":
            return is_float(node)
        moved = self.moved(node)
        if moved is not None:
            return self._native(moved)
        maker = self.makers.get(node)
        kind = self.kinds.get(maker) if maker is not None else None
        if maker is None or kind is None or self._reason(maker, kind):
            return False
        if kind in FOLLOWERS:
            return any(self._native(arg) for arg in inputs_of(maker, kind))
        return kind in ("conv", "linear", "embedding") and not self.computes_float(maker, kind)

    @cached_property
    def weights(self) -> dict[Node, Node]:
        """Return the weights to quantize, each with its first operator."""
        found: dict[Node, Node] = {}
        for node, kind in self.kinds.items():
            if self._reason(node, kind):
                continue
            if kind in ("conv", "linear", "embedding"):
                found.setdefault(cast(Node, weight_of(node)), node)
            elif kind in ("lstm", "gru"):
                module = cast(Recurrent, self.graph.get_submodule(cast(str, node.target)))
                for weight in module.weights(node):
                    found.setdefault(weight, node)
        return found

    def macs(self, node: Node, kind: str) -> int:
        """Return the multiply-accumulates with weights for one sample; 0 if the operator multiplies with none."""
        if kind in ("lstm", "gru"):
            module = cast(Recurrent, self.graph.get_submodule(cast(str, node.target)))
            return _steps(node, module.batch_first) * sum(_per_sample(w.meta["val"]) for w in module.weights(node))
        if kind == "rnn":
            weights: Any = node.args[2]
            steps = _steps(node, batch_first=bool(node.args[8]))
            return steps * sum(_per_sample(w.meta["val"]) for w in weights if w.meta["val"].dim() > 1)
        if kind == "matmul" and constant_factor(node) is not None:
            return product_macs(node)
        if kind not in WEIGHING:
            return 0
        read = 2 if kind == "bilinear" else 1
        weight: Any = cast(Node, node.args[read]).meta["val"]
        made: Any = cast(Node, node.args[0]) if kind == "conv_transpose" else node
        return math.prod(int(size) for size in weight.shape[1:]) * _per_sample(made.meta["val"])

    def place_operator(self, node: Node) -> str:
        """Return the type of the operator that makes `node`, `input`, or the ATen name of a mover of data."""
        if node.op == "placeholder":
            return "input"
        return self.kinds.get(node) or self.kind(node) or str(getattr(node.target, "_opname", node.target))


def find_places(finder: Finder, weight_limit: int) -> tuple[Place, ...]:
    """Return the places of weights and activations.

    Weights are int8, symmetric within ±`weight_limit`, per output channel; activations are uint8, affine. An
    embedding's table has a scale for each column, which takes one DequantizeLinear after the Gather. A table that is
    also the weight of a linear has one scale.
    """
    names: dict[Node, str] = {}
    made_by: dict[Node, Node] = {}
    places: list[Place] = []
    for node in finder.nodes:
        if node in finder.weights:
            places.append(_weight(node, finder, weight_limit))
            continue
        moved = finder.moved(node)
        shared = names.get(moved) if moved is not None else None
        if shared is None and (node not in finder.wanted or node.op == "get_attr"):
            continue
        name = _name(node)
        names[node] = shared or name
        made_by[node] = made_by[moved] if shared and moved is not None else finder.makers.get(node, node)
        places.append(Place(
            name=name, role="activation", node=node.name, dtype="uint8", qmin=0, qmax=255, symmetric=False,
            shared_with=shared, path=module_path(made_by[node]), operator=finder.place_operator(made_by[node]),
        ))  # fmt: skip
    return tuple(places)


def _weight(node: Node, finder: Finder, limit: int) -> Place:
    maker = finder.weights[node]
    kind, path = finder.kinds[maker], module_path(maker)
    tied = len({finder.kinds.get(user) for user in node.users} & {"linear", "embedding"}) > 1
    axis = None if tied else 1 if kind == "embedding" else 0
    computed = f"{path}.{node.name}:weight" if path else f"{node.name}:weight"
    return Place(
        name=str(node.target) if node.op == "get_attr" else computed, role="weight", node=node.name, dtype="int8",
        symmetric=True, axis=axis, qmin=-limit, qmax=limit,
        channels=None if axis is None else int(node.meta["val"].shape[axis]),
        path=path, operator=kind, weight_only=finder.computes_float(maker, kind),
    )  # fmt: skip


def _name(node: Node) -> str:
    if node.op == "placeholder":
        return f"{node.name}:input"
    path = module_path(node)
    return f"{path}.{node.name}:output" if path else f"{node.name}:output"


def _steps(node: Node, batch_first: bool) -> int:
    return int(cast(Node, node.args[0]).meta["val"].shape[1 if batch_first else 0])


def _per_sample(value: Any) -> int:
    """Elements of a tensor for one sample. Free sizes are multiples of the batch; here the batch is 1."""
    return math.prod(at_batch_1(size) for size in value.shape)
