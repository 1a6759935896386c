"""What can be done to a prepared model without training it: equalize, correct biases, measure batch norm anew."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from kdq_core.quantization.capture import BatchNorm
from kdq_core.quantization.fake import FakeQuantize

aten = torch.ops.aten
CONVS = {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
LAYERS = CONVS | {aten.linear.default}
Inputs = tuple[Tensor, ...]
SWEEPS = 30
"""Times that all pairs are equalized in turn, at most."""
SETTLED = 1e-3
"""No factor further from 1 than this ends the sweeps."""


@torch.no_grad()
def equalize(graph: fx.GraphModule) -> int:
    """Cross-layer equalization of a captured graph, in place; its outputs stay what they are.

    For layer -> [batch norm] -> [relu] -> layer with one reader each, channel i is divided by s_i in the first and
    multiplied in the second, s_i = sqrt(r1_i / r2_i) with r the largest absolute weight of the channel, batch norm
    folded. Layers may be grouped: in conv -> depthwise -> conv both pairs count. Pairs are taken in turn until nothing
    moves. Nagel et al. 2019, https://arxiv.org/abs/1906.04721, sections 4.1.1 and 4.1.2. Batch norm keeps the first
    layer's scale, so there its gain and bias are divided instead. A weight, bias or batch norm that the model uses more
    than once stays as it is: its other use would not be made up for.

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
    """Two layers; the channels of the first one's outputs are those of the second one's inputs."""

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
        """Equalize once; the largest |log s|."""
        r1 = _sizes(self.first, self.norm).amax(1)
        r2 = _sizes(self.second, self.second_norm).reshape(self.groups, -1, self.second.shape[1]).amax(1).reshape(-1)
        s = torch.where((r1 > 0) & (r2 > 0), (r1 / r2.clamp(min=1e-12)).sqrt(), 1.0).clamp(1e-4, 1e4)
        for one in self.changed()[:-1]:
            one.div_(s.reshape(-1, *[1] * (one.dim() - 1)))
        grouped = self.second.view(self.groups, -1, *self.second.shape[1:])
        grouped.mul_(s.reshape(self.groups, 1, -1, *[1] * (self.second.dim() - 2)))
        return float(s.log().abs().max())


def _sizes(weight: Tensor, norm: BatchNorm | None) -> Tensor:
    """Largest absolute weight between each output and input, `[C_out, C_in / groups]`, with batch norm folded."""
    sizes = weight.abs().reshape(*weight.shape[:2], -1).amax(2)
    return sizes if norm is None else sizes * norm.factor().abs().float()[:, None]


def _pair(graph: fx.GraphModule, node: fx.Node) -> _Pair | None:
    """`node` and the layer behind it, where nothing else reads in between and channels stay what they are."""
    norm, after = _norm_behind(graph, node), _only_reader(node)
    if norm is not None and after is not None:
        after = _only_reader(after)
    if after is not None and after.target == aten.relu.default:
        after = _only_reader(after)
    if after is None or after.target not in LAYERS or (after.target in CONVS) != (node.target in CONVS):
        return None
    first, second, groups = _parameter(graph, node, 1), _parameter(graph, after, 1), _groups(after)
    if first is None or second is None or second.shape[1] * groups != len(first):
        return None
    if norm is not None and (norm.weight is None or norm.bias is None):
        return None
    return _Pair(first, _parameter(graph, node, 2), norm, second, _norm_behind(graph, after), groups)


def _uses(graph: fx.GraphModule) -> Counter[Tensor]:
    """How often the graph uses each of its parameters."""
    uses: Counter[Tensor] = Counter()
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            uses[operator.attrgetter(str(node.target))(graph)] += len(node.users)
        elif node.op == "call_module":
            uses.update(graph.get_submodule(str(node.target)).parameters())
    return uses


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 else None


def _norm_behind(graph: fx.GraphModule, node: fx.Node) -> BatchNorm | None:
    """The batch norm that alone reads the layer `node`, over the layer's own channels."""
    after = _only_reader(node)
    module = graph.get_submodule(str(after.target)) if after is not None and after.op == "call_module" else None
    own = node.target in CONVS or node.meta["val"].dim() == 2
    return module if isinstance(module, BatchNorm) and own else None


def _parameter(graph: fx.GraphModule, node: fx.Node, index: int) -> nn.Parameter | None:
    """The parameter at argument `index`; looks through its fake-quantizer."""
    value: Any = node.args[index] if len(node.args) > index else None
    if isinstance(value, fx.Node) and value.op == "call_module":
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    return cast(nn.Parameter, operator.attrgetter(str(value.target))(graph))


def _groups(node: fx.Node) -> int:
    return int(cast(int, node.args[6])) if node.target in CONVS and len(node.args) > 6 else 1


@torch.no_grad()
def correct_biases(prepared: fx.GraphModule, batches: Iterable[Inputs]) -> int:
    """Take the mean error of rounded weights out of biases (or out of the batch norm behind), in place.

    The error of output channel c is sum over inputs of (w_q - w) * E[x], with E[x] the mean of each input channel over
    the batches, measured without rounding. Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2. Padding is
    left out of account; a layer with neither bias nor batch norm stays as it is. A bias that is used more than once is
    corrected once, by the mean error over its uses, weighted by their samples.

    Args:
        prepared: from `prepare`, with ranges; in eval mode.
        batches: inputs of the model.

    Returns:
        How many biases, or batch norms in place of one, were corrected.
    """
    shifts: dict[Tensor, Tensor] = {}
    samples: Counter[Tensor] = Counter()
    for node, (total, count) in _input_sums(prepared, batches).items():
        corrected = _corrected(prepared, node)
        assert corrected is not None
        shifts[corrected] = shifts.get(corrected, torch.zeros_like(corrected)) + _error(prepared, node, total)
        samples[corrected] += count
    for corrected, shift in shifts.items():
        mean = shift / samples[corrected]
        corrected.sub_(mean if isinstance(corrected, nn.Parameter) else -mean)  # a running mean is subtracted itself
    return len(shifts)


def _corrected(prepared: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The bias of a layer, or the running mean behind it."""
    norm = _norm_behind(prepared, node)
    bias = _parameter(prepared, node, 2)
    return bias if bias is not None else None if norm is None else norm.running_mean


def _error(prepared: fx.GraphModule, node: fx.Node, inputs: Tensor) -> Tensor:
    """What rounding the weight of `node` adds to each output channel, for `inputs` `[C_in]`."""
    weight = _parameter(prepared, node, 1)
    assert weight is not None
    module = cast(FakeQuantize, prepared.get_submodule(str(cast(fx.Node, node.args[1]).target)))
    error = module.integers(weight) * module.grid().spread(weight) - weight
    per_input = error.reshape(*error.shape[:2], -1).sum(2)  # [C_out, C_in / groups]
    groups = _groups(node)
    return (per_input * inputs.reshape(groups, -1).repeat_interleave(len(weight) // groups, dim=0)).sum(1)


def _input_sums(prepared: fx.GraphModule, batches: Iterable[Inputs]) -> dict[fx.Node, tuple[Tensor, int]]:
    """For every layer with a rounded weight and something to correct: see `_Recorder`."""
    wanted = {
        node
        for node in prepared.graph.nodes
        if node.target in LAYERS
        and isinstance(node.args[1], fx.Node)
        and node.args[1].op == "call_module"
        and _corrected(prepared, node) is not None
    }
    recorder = _Recorder(prepared, wanted)
    for inputs in batches:
        recorder.run(*inputs)
    return recorder.sums


class _Recorder(fx.Interpreter):
    """Runs the graph; adds up over samples the channel means of the inputs of some nodes, and counts the samples."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.sums: dict[fx.Node, tuple[Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n in self.wanted:
            x = self.fetch_args_kwargs_from_env(n)[0][0]
            axis = 1 if n.target in CONVS else x.dim() - 1
            mean = x.float().mean([dim for dim in range(x.dim()) if dim != axis])
            total, count = self.sums.get(n, (torch.zeros_like(mean), 0))
            self.sums[n] = total + len(x) * mean, count + len(x)
        return super().run_node(n)


@torch.no_grad()
def reestimate_batch_norm(prepared: nn.Module, batches: Iterable[Inputs]) -> None:
    """Measure the running statistics anew over `batches`, with rounding as it is: the mean of the batches' own.

    Sun et al. 2019, https://arxiv.org/abs/1906.02693, section 3.3. Dropout stays off; ranges stand still. A batch norm
    that is used more than once takes the mean over its uses.
    """
    norms = [module for module in prepared.modules() if isinstance(module, BatchNorm)]
    before = [(norm.training, norm.frozen, norm.momentum) for norm in norms]
    seen: Counter[nn.Module] = Counter()

    def average(norm: nn.Module, _: Any) -> None:
        seen[norm] += 1
        norm.momentum = 1 / seen[norm]  # type: ignore[assignment]

    prepared.eval()
    hooks = [norm.register_forward_pre_hook(average) for norm in norms]
    for norm in norms:
        norm.train()
        norm.frozen = False
    for inputs in batches:
        prepared(*inputs)
    for hook in hooks:
        hook.remove()
    for norm, (training, frozen, momentum) in zip(norms, before, strict=True):
        norm.train(training)
        norm.frozen, norm.momentum = frozen, momentum
