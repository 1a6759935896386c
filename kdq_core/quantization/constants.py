"""Values of a graph that are the same for every input: parameters, buffers, and what is computed from them alone."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx


def is_constant(node: fx.Node) -> bool:
    """Tell whether parameters, buffers and numbers alone determine the value of `node`."""
    ahead, seen = [node], {node}
    while ahead:
        one = ahead.pop()
        random = torch.Tag.nondeterministic_seeded in getattr(one.target, "tags", ())
        if one.op not in ("get_attr", "call_function") or random:
            return False
        new = [source for source in one.all_input_nodes if source not in seen]
        ahead += new
        seen.update(new)
    return True


def constant_value(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    """Compute the value of a constant `node`, with a gradient to the parameters."""
    known: dict[fx.Node, Any] = {}

    def value(one: fx.Node) -> Any:
        if one not in known:
            held = one.op == "get_attr"
            known[one] = operator.attrgetter(str(one.target))(graph) if held else _called(one)
        return known[one]

    def _called(one: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((one.args, one.kwargs), value)
        return cast(Any, one.target)(*args, **kwargs)

    return cast(Tensor, value(node))
