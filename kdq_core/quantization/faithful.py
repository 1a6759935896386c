"""Checks that a captured graph gives the same as its model in eval mode, and finds the module where they differ."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

SEEDS = (0, 1)


def faithful(captured: fx.GraphModule, model: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Tell whether both give the same for `example` in eval mode, up to rounding, with each of two random seeds.

    It runs copies, so that buffers, modes and the random state stay as they are.
    """
    ours, theirs = copy.deepcopy(captured).eval(), copy.deepcopy(model).eval()
    return all(_same(_run(theirs, example, seed), _run(ours, example, seed)) for seed in SEEDS)


def is_random(captured: fx.GraphModule) -> bool:
    """Tell whether a captured graph draws random numbers outside the modules that switch it off in eval mode.

    `faithful` can miss such a draw: it may drop no sample of the example, or end in a layer whose weights are still
    zero.
    """
    return any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in captured.graph.nodes)


def why_unfaithful(captured: fx.GraphModule, model: nn.Module, example: tuple[Tensor, ...]) -> str:
    """Name the module whose results in eval mode differ from the graph's, and say what to do about it.

    Args:
        captured: the graph of the model in eval mode, for which `faithful` gives false.
        model: the model.
        example: inputs on which model and graph differ.
    """
    copied = copy.deepcopy(model).eval()
    first, second = _results(copied, example, SEEDS[0]), _results(copied, example, SEEDS[1])
    for (path, given), (_, again) in zip(first, second, strict=False):
        if not _same(given, again):
            return (
                f"{_owner(path)} gives other results at each call in eval mode, too, which a graph cannot repeat; let "
                "what is random or counts calls depend on self.training, as F.dropout(x, p, self.training) does"
            )
    values = _graph_results(captured, example)
    parted = (path for path, given in first if path in values and not any(_same(given, v) for v in values[path]))
    return (
        f"in eval mode {_owner(next(parted, ''))} gives other results than its graph; compute them from inputs, "
        "parameters and buffers alone"
    )


def _owner(path: str) -> str:
    return f"module {path!r}" if path else "its forward"


@contextmanager
def _alike(example: tuple[Tensor, ...], seed: int) -> Iterator[None]:
    """Run the body with random numbers from `seed`, without gradients, and without the fast path of transformer layers.

    In eval mode outside a graph, that fast path fills padded positions with zeros.
    """
    devices = sorted({x.device.index for x in example if x.is_cuda})
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def _run(model: nn.Module, example: tuple[Tensor, ...], seed: int) -> Any:
    with _alike(example, seed):
        return model(*(x.clone() for x in example))


def _results(model: nn.Module, example: tuple[Tensor, ...], seed: int) -> list[tuple[str, dict[Any, Tensor]]]:
    """List path and result of each module call that gives tensors, the innermost first."""
    results: list[tuple[str, dict[Any, Tensor]]] = []

    def keep(path: str, given: Any) -> None:
        named = _named(given)
        if all(isinstance(value, Tensor) for value in named.values()):
            results.append((path, {name: value.clone() for name, value in named.items()}))

    hooks = [
        module.register_forward_hook(lambda _, __, given, path=path: keep(path, given))
        for path, module in model.named_modules()
    ]
    _run(model, example, seed)
    for hook in hooks:
        hook.remove()
    return results


def _graph_results(captured: fx.GraphModule, example: tuple[Tensor, ...]) -> dict[str, list[Any]]:
    """List the values computed in each module, by its path; the empty path has the outputs of the graph."""
    values: dict[str, list[Any]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            for path, _ in n.meta.get("nn_module_stack", {}).values():
                values.setdefault(path.partition("@")[0], []).append(value)
            return value

    with _alike(example, SEEDS[0]):
        values[""] = [Recorder(copy.deepcopy(captured).eval()).run(*example)]
    return values


def _same(wanted: Any, given: Any) -> bool:
    wanted, given = _named(wanted), _named(given)
    return wanted.keys() == given.keys() and all(_close(wanted[name], given[name]) for name in wanted)


def _named(outputs: Any) -> dict[Any, Any]:
    if isinstance(outputs, Mapping):
        return dict(outputs)
    return dict(enumerate(outputs)) if isinstance(outputs, tuple | list) else {"": outputs}


def _close(wanted: Any, given: Any) -> bool:
    """Tell whether two values are equal up to half of the type's digits, relative to the largest value.

    The graph usually runs the same operators as the model, so that most outputs are equal to the bit. Other operators
    (recurrent layers, attention, instance norm as batch norm) sum in another order, which changes a few of the last
    digits, and some more in deep models. A branch taken only in training, or a random one, changes the first digits.
    """
    if not (isinstance(wanted, Tensor) and isinstance(given, Tensor)):
        return wanted is given
    if wanted.shape != given.shape or wanted.dtype != given.dtype:
        return False
    if not (wanted.is_floating_point() or wanted.is_complex()):
        return torch.equal(wanted, given)
    eps, finite = torch.finfo(wanted.dtype).eps, wanted[wanted.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(given, wanted, rtol=0.0, atol=eps**0.5 * largest + eps, equal_nan=True)
