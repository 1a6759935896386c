"""Improves a prepared model without training: corrects biases, and measures batch-norm statistics anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from kdq_core.grids.fake import FakeQuantize
from kdq_core.quantization.capture import BatchNorm
from kdq_core.quantization.constants import constant_value
from kdq_core.quantization.layers import CONVS, LAYERS, groups_of, norm_behind, parameter

Inputs = tuple[Tensor, ...]


@torch.no_grad()
def correct_biases(prepared: fx.GraphModule, batches: Iterable[Inputs]) -> int:
    """Subtract the mean error of rounded weights from biases (or from the batch norm behind), in place.

    The error of output channel c is the sum over inputs of (w_q - w) * E[x], with E[x] the mean of each input channel
    over the batches, measured without rounding. Nagel et al. 2019, https://arxiv.org/abs/1906.04721, section 4.2.
    Padding is ignored. A layer with neither bias nor batch norm stays as it is. A bias that is used more than once is
    corrected once, by the mean error over its uses, weighted by their samples.

    Args:
        prepared: from `prepare`, with observed ranges; in eval mode.
        batches: inputs of the model.

    Returns:
        The number of biases that were corrected; a batch norm corrected instead counts too.
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
        corrected.sub_(mean if isinstance(corrected, nn.Parameter) else -mean)  # batch norm subtracts its running mean
    return len(shifts)


def _corrected(prepared: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """Give the tensor to correct for a layer: its bias, or else the running mean of the batch norm behind it."""
    norm = norm_behind(prepared, node)
    bias = parameter(prepared, node, 2)
    return bias if bias is not None else None if norm is None else norm.running_mean


def _error(prepared: fx.GraphModule, node: fx.Node, inputs: Tensor) -> Tensor:
    """Compute what rounding the weight of `node` adds to each output channel, for `inputs` `[C_in]`."""
    call = cast(fx.Node, node.args[1])
    weight = constant_value(prepared, call.all_input_nodes[0])
    module = cast(FakeQuantize, prepared.get_submodule(str(call.target)))
    error = module.integers(weight) * module.grid().spread(weight) - weight
    per_input = error.reshape(*error.shape[:2], -1).sum(2)  # [C_out, C_in / groups]
    groups = groups_of(node)
    return (per_input * inputs.reshape(groups, -1).repeat_interleave(len(weight) // groups, dim=0)).sum(1)


def _input_sums(prepared: fx.GraphModule, batches: Iterable[Inputs]) -> dict[fx.Node, tuple[Tensor, int]]:
    """Sum the inputs (see `_Recorder`) of every layer that has a rounded weight and a tensor to correct."""
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
    """Runs the graph; sums the channel means of the inputs of some nodes over the samples, and counts the samples."""

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
    """Measure the running statistics anew, as the mean of the statistics of all `batches`; rounding stays as set.

    Sun et al. 2019, https://arxiv.org/abs/1906.02693, section 3.3. Dropout stays off, and ranges do not change. A batch
    norm that is used more than once takes the mean over its uses. A batch norm that the model keeps in eval mode stays
    as it is.
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
