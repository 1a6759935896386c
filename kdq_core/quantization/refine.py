"""What can be done to a prepared model without training it: equalize, correct biases, measure batch norm anew."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from kdq_core.quantization.capture import BatchNorm
from kdq_core.quantization.fake import FakeQuantize

aten = torch.ops.aten
CONVS = {aten.conv1d.default, aten.conv2d.default}
LAYERS = CONVS | {aten.linear.default}
Inputs = tuple[Tensor, ...]


@torch.no_grad()
def equalize(graph: fx.GraphModule) -> int:
    """Cross-layer equalization of a captured graph, in place; its outputs stay what they are.

    For layer -> [batch norm] -> relu -> layer with one reader each, channel i is divided by s_i in the first and
    multiplied in the second, s_i = sqrt(r1_i / r2_i) with r the largest absolute weight of the channel.
    Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.1. Batch norm keeps the first layer's scale, so there
    its gain and bias are divided instead.

    Returns:
        How many pairs of layers were equalized.
    """
    pairs = 0
    for node in graph.graph.nodes:
        chain = _chain(graph, node) if node.target in LAYERS else None
        if chain is None:
            continue
        norm, after = chain
        first, second = _weight(graph, node), _weight(graph, after)
        if first is None or second is None or second.shape[1] != first.shape[0]:  # grouped, or reshaped in between
            continue
        gain = torch.ones(len(first)) if norm is None else norm.factor().abs().float()
        r1 = first.flatten(1).abs().amax(1) * gain
        r2 = second.transpose(0, 1).flatten(1).abs().amax(1)
        s = torch.where((r1 > 0) & (r2 > 0), (r1 / r2.clamp(min=1e-12)).sqrt(), 1.0).clamp(1e-4, 1e4)
        if norm is None:
            first.div_(s.reshape(-1, *[1] * (first.dim() - 1)))
            bias = _parameter(graph, node, 2)
            if bias is not None:
                bias.div_(s)
        elif norm.weight is None or norm.bias is None:
            continue
        else:
            norm.weight.div_(s)
            norm.bias.div_(s)
        second.mul_(s.reshape(1, -1, *[1] * (second.dim() - 2)))
        pairs += 1
    return pairs


def _chain(graph: fx.GraphModule, node: fx.Node) -> tuple[BatchNorm | None, fx.Node] | None:
    """The batch norm and the layer behind `node` and a relu, where nothing else reads in between."""
    norm, after = None, _only_reader(node)
    if after is not None and after.op == "call_module":
        module = graph.get_submodule(str(after.target))
        norm, after = (module, _only_reader(after)) if isinstance(module, BatchNorm) else (None, None)
    if after is None or after.target != aten.relu.default:
        return None
    end = _only_reader(after)
    return (norm, end) if end is not None and end.target in LAYERS and end.args[0] is after else None


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 else None


def _parameter(graph: fx.GraphModule, node: fx.Node, index: int) -> nn.Parameter | None:
    """The parameter at argument `index`; looks through its fake-quantizer."""
    value: Any = node.args[index] if len(node.args) > index else None
    if isinstance(value, fx.Node) and value.op == "call_module":
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    return cast(nn.Parameter, operator.attrgetter(str(value.target))(graph))


def _weight(graph: fx.GraphModule, node: fx.Node) -> nn.Parameter | None:
    return _parameter(graph, node, 1)


@torch.no_grad()
def correct_biases(prepared: fx.GraphModule, batches: Iterable[Inputs]) -> int:
    """Take the mean error of rounded weights out of biases (or out of the batch norm behind), in place.

    The error of output channel c is sum over inputs of (w_q - w) * E[x], with E[x] the mean of each input channel over
    the batches, measured without rounding. Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2. Padding is
    left out of account; a layer with neither bias nor batch norm stays as it is.

    Args:
        prepared: from `prepare`, with ranges; in eval mode.
        batches: inputs of the model.

    Returns:
        How many layers were corrected.
    """
    means = _input_means(prepared, batches)
    for node, mean in means.items():
        weight = _weight(prepared, node)
        call = cast(fx.Node, node.args[1])
        module = cast(FakeQuantize, prepared.get_submodule(str(call.target)))
        assert weight is not None
        error = module.integers(weight) * module.grid().spread(weight) - weight
        groups = int(cast(int, node.args[6])) if node.target in CONVS and len(node.args) > 6 else 1
        per_input = error.flatten(2).sum(2) if node.target in CONVS else error  # [C_out, C_in / groups]
        grouped = mean.reshape(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
        shift = (per_input * grouped).sum(1)
        bias, norm = _parameter(prepared, node, 2), _norm_behind(prepared, node)
        if bias is not None:
            bias.sub_(shift)
        elif norm is not None:
            norm.running_mean.add_(shift)
    return len(means)


def _norm_behind(prepared: fx.GraphModule, node: fx.Node) -> BatchNorm | None:
    after = _only_reader(node)
    module = prepared.get_submodule(str(after.target)) if after is not None and after.op == "call_module" else None
    return module if isinstance(module, BatchNorm) else None


def _input_means(prepared: fx.GraphModule, batches: Iterable[Inputs]) -> dict[fx.Node, Tensor]:
    """Mean of each input channel of every layer with a rounded weight and something to correct."""
    wanted = [
        node
        for node in prepared.graph.nodes
        if node.target in LAYERS
        and isinstance(node.args[1], fx.Node)
        and node.args[1].op == "call_module"
        and (_parameter(prepared, node, 2) is not None or _norm_behind(prepared, node) is not None)
    ]
    sums: dict[fx.Node, Tensor] = {}
    count = 0
    recorder = _Recorder(prepared, wanted, sums)
    for inputs in batches:
        recorder.run(*inputs)
        count += 1
    return {node: total / count for node, total in sums.items()}


class _Recorder(fx.Interpreter):
    """Runs the graph and adds up the channel means of the inputs of some nodes."""

    def __init__(self, module: fx.GraphModule, wanted: list[fx.Node], sums: dict[fx.Node, Tensor]) -> None:
        super().__init__(module)
        self.wanted, self.sums = set(wanted), sums

    def run_node(self, n: fx.Node) -> Any:
        if n in self.wanted:
            x = self.fetch_args_kwargs_from_env(n)[0][0]
            axis = 1 if n.target in CONVS else x.dim() - 1
            mean = x.float().mean([dim for dim in range(x.dim()) if dim != axis])
            self.sums[n] = self.sums.get(n, torch.zeros_like(mean)) + mean
        return super().run_node(n)


@torch.no_grad()
def reestimate_batch_norm(prepared: nn.Module, batches: Iterable[Inputs]) -> None:
    """Measure the running statistics anew over `batches`, with rounding as it is: the mean of the batches' own.

    Sun et al. 2019, https://arxiv.org/abs/1906.02693, section 3.3. Dropout stays off; ranges stand still.
    """
    norms = [module for module in prepared.modules() if isinstance(module, BatchNorm)]
    before = [(norm.training, norm.frozen, norm.momentum) for norm in norms]
    prepared.eval()
    for seen, inputs in enumerate(batches):
        for norm in norms:
            norm.train()
            norm.frozen, norm.momentum = False, 1 / (seen + 1)
        prepared(*inputs)
    for norm, (training, frozen, momentum) in zip(norms, before, strict=True):
        norm.train(training)
        norm.frozen, norm.momentum = frozen, momentum
