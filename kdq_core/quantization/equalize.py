"""Cross-layer equalization: makes the weight ranges of pairs of layers equal, and keeps the model's outputs."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from kdq_core.quantization.capture import BatchNorm
from kdq_core.quantization.layers import CONVS, LAYERS, aten, groups_of, norm_behind, only_reader, parameter

SWEEPS = 30
"""The most times that all pairs are equalized in turn."""
SETTLED = 1e-3
"""The sweeps end when all |log s| are below this."""


@torch.no_grad()
def equalize(graph: fx.GraphModule) -> int:
    """Equalize the layers of a captured graph, in place; its outputs stay the same.

    A pair is layer -> [batch norm] -> [relu] -> layer with one reader each. Channel i is divided by s_i in the first
    layer and multiplied by s_i in the second. s_i = sqrt(r1_i / r2_i), with r the largest absolute weight of the
    channel, batch norm folded. Layers may be grouped: conv -> depthwise -> conv has two pairs. Pairs are equalized in
    turn until nothing changes. Nagel et al. 2019, https://arxiv.org/abs/1906.04721, sections 4.1.1 and 4.1.2.

    A layer with a batch norm behind it keeps its scale; the gain and bias of the batch norm are divided instead. A
    weight, bias or batch norm that the model uses more than once stays as it is, because its other use would change.

    Returns:
        How many pairs of layers were equalized.
    """
    uses = _uses(graph)
    found = (_pair(graph, node) for node in graph.graph.nodes if node.target in LAYERS)
    pairs = [pair for pair in found if pair is not None and all(uses[one] == 1 for one in pair.changed())]
    for _ in range(SWEEPS):
        if max((pair.equalize() for pair in pairs), default=0.0) < SETTLED:
            break
    return len(pairs)


@dataclass(frozen=True)
class _Pair:
    """Two layers; the output channels of the first are the input channels of the second."""

    first: nn.Parameter  # [C, ...]
    bias: nn.Parameter | None
    norm: BatchNorm | None
    second: nn.Parameter  # [C_out, C / groups, ...]
    second_norm: BatchNorm | None
    groups: int

    def changed(self) -> list[Tensor]:
        scaled = [self.first, self.bias] if self.norm is None else [self.norm.weight, self.norm.bias]
        return [one for one in (*scaled, self.second) if one is not None]

    def equalize(self) -> float:
        """Equalize once, and give the largest |log s|."""
        r1 = _sizes(self.first, self.norm).amax(1)
        r2 = _sizes(self.second, self.second_norm).reshape(self.groups, -1, self.second.shape[1]).amax(1).reshape(-1)
        s = torch.where((r1 > 0) & (r2 > 0), (r1 / r2.clamp(min=1e-12)).sqrt(), 1.0).clamp(1e-4, 1e4)
        for one in self.changed()[:-1]:
            one.div_(s.reshape(-1, *[1] * (one.dim() - 1)))
        grouped = self.second.view(self.groups, -1, *self.second.shape[1:])
        grouped.mul_(s.reshape(self.groups, 1, -1, *[1] * (self.second.dim() - 2)))
        return float(s.log().abs().max())


def _sizes(weight: Tensor, norm: BatchNorm | None) -> Tensor:
    """Find the largest absolute weight from each input to each output, `[C_out, C_in / groups]`, batch norm folded."""
    sizes = weight.abs().reshape(*weight.shape[:2], -1).amax(2)
    return sizes if norm is None else sizes * norm.factor().abs().float()[:, None]


def _pair(graph: fx.GraphModule, node: fx.Node) -> _Pair | None:
    """Pair `node` with the layer behind it, if nothing else reads the tensors between them and the channels match."""
    norm, after = norm_behind(graph, node), only_reader(node)
    if norm is not None and after is not None:
        after = only_reader(after)
    if after is not None and after.target == aten.relu.default:
        after = only_reader(after)
    if after is None or after.target not in LAYERS or (after.target in CONVS) != (node.target in CONVS):
        return None
    first, second, groups = parameter(graph, node, 1), parameter(graph, after, 1), groups_of(after)
    bias = parameter(graph, node, 2)
    computed = bias is None and len(node.args) > 2 and node.args[2] is not None
    if computed or first is None or second is None or second.shape[1] * groups != len(first):
        return None
    if norm is not None and (norm.weight is None or norm.bias is None):
        return None
    return _Pair(first, bias, norm, second, norm_behind(graph, after), groups)


def _uses(graph: fx.GraphModule) -> Counter[Tensor]:
    """Count how often the graph uses each of its parameters."""
    uses: Counter[Tensor] = Counter()
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            uses[operator.attrgetter(str(node.target))(graph)] += len(node.users)
        elif node.op == "call_module":
            uses.update(graph.get_submodule(str(node.target)).parameters())
    return uses
