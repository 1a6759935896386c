"""Count the multiply-accumulates of products of two tensors: attention, `matmul` and its kin, `einsum`."""

from __future__ import annotations

import math
from typing import Any

from torch.fx import Node

from kdq_core.api import is_constant

OPERANDS = {"matmul": 0, "mm": 0, "bmm": 0, "baddbmm": 1, "addmm": 1}
"""Products of two tensors, each with the place of its first factor."""


def activation_macs(node: Node, kind: str) -> int:
    """Return the multiply-accumulates between activations for one sample; 0 for an operator that has none.

    Args:
        node: an operator of a captured graph.
        kind: its type, as in coverage.
    """
    if kind == "attention":
        query, key = (_shape(arg) for arg in node.args[:2])
        return key[-2] * (math.prod(query) + math.prod(_shape(node)))
    if constant_factor(node) is not None:
        return 0
    return product_macs(node)


def product_macs(node: Node) -> int:
    """Return the multiply-accumulates of a product of two tensors for one sample; 0 for another operator."""
    factors = _factors(node)
    if len(factors) < 2:
        return 0
    einsum = str(getattr(node.target, "_opname", "")) == "einsum"
    contracted = _contracted(str(node.args[0]), factors) if einsum else _shape(factors[0])[-1]
    return contracted * math.prod(_shape(node))


def constant_factor(node: Node) -> Node | None:
    """Return the factor of a product that does not depend on the model's inputs, or `None`."""
    return next((factor for factor in _factors(node) if is_constant(factor)), None)


def float_bytes(node: Node, kind: str) -> int:
    """Return the bytes of the weights of an operator that has no int8 form: a product with a constant, or an RNN."""
    factor = constant_factor(node)
    weights: Any = [] if factor is None else [factor]
    if kind in ("rnn", "bilinear"):
        weights = node.args[2] if kind == "rnn" else node.args[2:3]
    values = [weight.meta["val"] for weight in weights]
    return sum(value.numel() * value.element_size() for value in values if value.dim() > 1)


def _factors(node: Node) -> Any:
    """The two factors of a product; fewer for another operator."""
    name = str(getattr(node.target, "_opname", ""))
    if name == "einsum":
        return node.args[1]
    return node.args[OPERANDS[name] : OPERANDS[name] + 2] if name in OPERANDS else ()


def _contracted(equation: str, factors: Any) -> int:
    """Product of the sizes of the indices over which an einsum sums."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, factor in zip(terms.split(","), factors):
        before, _, after = term.partition("...")
        shape = _shape(factor)
        sizes |= dict(zip(before, shape)) | dict(zip(reversed(after), reversed(shape)))
    if not arrow:
        result = "".join(index for index in sizes if terms.count(index) == 1)
    return math.prod(size for index, size in sizes.items() if index not in result)


def _shape(node: Any) -> list[int]:
    """Sizes of a tensor for one sample."""
    return [at_batch_1(size) for size in node.meta["val"].shape]


def at_batch_1(size: Any) -> int:
    """Return a size for one sample. Free sizes are multiples of the batch; here the batch is 1."""
    if isinstance(size, int):
        return size
    expression: Any = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
