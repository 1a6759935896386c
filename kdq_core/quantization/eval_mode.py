"""Whether a captured graph answers in eval mode as the model does, and what of eval mode becomes of its operators."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten
NOTHING = {aten.alpha_dropout.default, aten.feature_alpha_dropout.default}
"""Operators that are the identity in eval mode."""
RELATIVE = 1e-3
"""Share of the largest answer by which two ways to compute it may differ, such as folded and unfolded attention."""


def chance(graph: fx.Graph) -> bool:
    """Whether an operator of `graph` draws random numbers, in eval mode too."""
    return any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in graph.nodes)


def settle(graph: fx.Graph) -> None:
    """Replace random operators of a graph that was traced in eval mode by what they are there."""
    for node in list(graph.nodes):
        if node.target in NOTHING:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target == aten.rrelu.default:
            low, high = [*node.args[1:3], *(0.125, 1 / 3)[len(node.args) - 1 :]][:2]
            node.target, node.args = aten.leaky_relu.default, (node.args[0], (low + high) / 2)
            node.kwargs = {}


def alike(graph: fx.GraphModule, model: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Whether both give the same answers to `example` in eval mode; neither is changed, and no random state.

    Each is asked twice, under two seeds: one that draws numbers gives itself away.
    """
    ours, theirs = copy.deepcopy(graph).eval(), copy.deepcopy(model).eval()
    devices = [x.device for x in example if x.device.type == "cuda"]
    with torch.no_grad(), torch.random.fork_rng(devices), _slow_attention():
        for seed in (0, 1):
            torch.manual_seed(seed)
            pairs = zip(_tensors(ours(*example)), _tensors(theirs(*example)), strict=True)
            if not all(_close(a, b) for a, b in pairs):
                return False
    return True


def _close(ours: Tensor, theirs: Tensor) -> bool:
    if not theirs.is_floating_point():
        return torch.equal(ours, theirs)
    finite = theirs[theirs.isfinite()]
    bound = RELATIVE * float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=0, atol=bound + 1e-6, equal_nan=True)


def _tensors(given: Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
    if isinstance(given, Tensor):
        return [given]
    return list(given.values() if isinstance(given, Mapping) else given)


@contextlib.contextmanager
def _slow_attention() -> Iterator[None]:
    """Without the fused transformer layers of eval mode, which answer otherwise at padding."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
