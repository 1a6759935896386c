"""Channels of a module: which can be removed, which are the weakest, and the surgery itself."""

from collections import Counter
from typing import Any

import torch
from torch import fx, nn

from kdq_core.api import StageError

BETWEEN = (
    nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Dropout, nn.Dropout2d, nn.Identity, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.Flatten,
)  # fmt: skip
CALLED = {"relu", "adaptive_avg_pool2d", "avg_pool2d", "flatten"}
"""Functions and methods that keep the order of channels."""


def chains(model: nn.Module) -> list[dict[str, Any]]:
    """Paths of each convolution that can be pruned, of the batch norms behind it, and of the layer that reads it.

    Raises:
        StageError: torch.fx cannot trace the student.
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:
        raise StageError(f"'prune-channels' cannot trace the student: {error}; leave the stage out") from error
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    modules = dict(model.named_modules())
    found = []
    for node in graph.nodes:
        if not prunable(node, modules):
            continue
        path, flat = [node], False
        while len(path[-1].users) == 1:
            path.append(next(iter(path[-1].users)))
            if not between(path[-1], modules):
                break
            flat = flat or "flatten" in str(path[-1].target).lower() or isinstance(of(path[-1], modules), nn.Flatten)
        end = of(path[-1], modules)
        fits = isinstance(end, nn.Linear) if flat else prunable(path[-1], modules)
        if len(path) > 1 and fits and all(calls[one.target] == 1 for one in path if one.op == "call_module"):
            norms = [one.target for one in path if isinstance(of(one, modules), nn.BatchNorm2d)]
            found.append({"conv": node.target, "norms": norms, "into": path[-1].target})
    return found


def of(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The module that a node calls."""
    return modules[str(node.target)] if node.op == "call_module" else None


def prunable(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a convolution of a single group."""
    module = of(node, modules)
    return isinstance(module, nn.Conv2d) and module.groups == 1


def between(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node keeps the order of channels."""
    if node.op == "call_module":
        return isinstance(of(node, modules), BETWEEN)
    return node.op in ("call_function", "call_method") and getattr(node.target, "__name__", node.target) in CALLED


def strongest(model: nn.Module, path: str, share: float) -> list[int]:
    """Numbers of the channels that a convolution keeps, in order."""
    norms = model.get_submodule(path).weight.detach().abs().sum((1, 2, 3))
    stay = max(1, len(norms) - int(share * len(norms)))
    return sorted(norms.argsort(descending=True, stable=True)[:stay].tolist())


def cut_out(model: nn.Module, cuts: list[dict[str, Any]]) -> nn.Module:
    """Remove all but the kept channels from `model`, which is changed in place and returned."""
    for cut in cuts:
        kept = torch.tensor(cut["kept"])
        conv, into = model.get_submodule(cut["conv"]), model.get_submodule(cut["into"])
        before, conv.out_channels = conv.out_channels, len(kept)
        select(conv, ("weight", "bias"), 0, kept)
        for norm in map(model.get_submodule, cut["norms"]):
            norm.num_features = len(kept)
            select(norm, ("weight", "bias", "running_mean", "running_var"), 0, kept)
        if isinstance(into, nn.Linear):  # behind a flatten, a channel has one column for each of its positions
            places = into.in_features // before
            columns = (kept[:, None] * places + torch.arange(places)).flatten()
            into.in_features = len(columns)
            select(into, ("weight",), 1, columns)
        else:
            into.in_channels = len(kept)
            select(into, ("weight",), 1, kept)
    return model


def select(module: nn.Module, names: tuple[str, ...], dim: int, kept: torch.Tensor) -> None:
    """Keep only the rows or columns `kept` of a module's parameters and buffers."""
    for name in names:
        old = getattr(module, name)
        if old is not None:
            new = old.detach().index_select(dim, kept)
            setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
