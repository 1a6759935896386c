"""Taps: they read the outputs of modules inside a model while it runs, in a plain module and in a captured graph.

A tap names a module by its path and does not change the model. A plain module is read by forward hooks that live as
long as one call. A graph gets a second forward function over the same weights, which gives the tapped values beside the
outputs.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from kdq_core.errors import RecipeError
from kdq_core.grids.fake import FakeQuantize

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
SHOWN = 3


@dataclass(frozen=True)
class Layer:
    """A module that gives one tensor: the module's path, and the tensor's shape without the batch axis."""

    path: str
    shape: tuple[int, ...]


@contextlib.contextmanager
def tapping(model: nn.Module, paths: Iterable[str], role: str) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of modules while the body of the `with` runs `model`.

    Args:
        model: a module that runs its submodules, not a captured graph.
        paths: paths of submodules.
        role: `student` or `teacher`, for messages.

    Yields:
        The outputs by path, empty until the body runs the model. For a module called twice, it has the last output.

    Raises:
        RecipeError: a module gives something other than one tensor, or is not called.
    """
    seen: dict[str, Tensor] = {}

    def hook(path: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, given: Any) -> None:
            if not isinstance(given, Tensor):
                raise RecipeError(
                    f"tap {path!r} of the {role} gives a {type(given).__name__!r}, not a tensor; tap a module that "
                    "gives one tensor, such as the layer behind it, or let the module give one"
                )
            seen[path] = given.clone()  # the next module may work in place, as ReLU(inplace=True) and += do

        return keep

    wanted = tuple(dict.fromkeys(paths))
    handles = [model.get_submodule(path).register_forward_hook(hook(path)) for path in wanted]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    missing = [path for path in wanted if path not in seen]
    if missing:
        raise RecipeError(f"tap {missing[0]!r} of the {role} is never called by the model; tap a module that is")


def layers(model: nn.Module, run: Callable[[], Any]) -> tuple[Layer, ...]:
    """List the submodules that give a tensor of their own when `run` runs `model`, in the order in which they finish.

    It leaves out dropout, the module that gives the model's output, and modules that pass on another module's tensor.
    """
    found: list[Layer] = []
    tensors: list[Tensor] = []  # kept alive, so that no two share an identity

    def hook(path: str, module: nn.Module) -> Callable[..., None]:
        def keep(_module: nn.Module, inputs: tuple[Any, ...], given: Any) -> None:
            if not isinstance(given, Tensor) or isinstance(module, DROPOUTS):
                return
            if getattr(module, "inplace", False) and tensors and tensors[-1] is given:
                found[-1] = Layer(path, tuple(given.shape[1:]))
            elif all(given is not x for x in (*tensors, *inputs)):
                found.append(Layer(path, tuple(given.shape[1:])))
                tensors.append(given)

        return keep

    handles = [m.register_forward_hook(hook(path, m)) for path, m in model.named_modules() if path]
    final: list[Any] = []
    handles.append(model.register_forward_hook(lambda _m, _x, given: final.append(given)))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            run()
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return tuple(layer for layer, tensor in zip(found, tensors, strict=True) if all(tensor is not x for x in final))


def matching(model: nn.Module, pattern: str, role: str, what: str = "tap") -> tuple[str, ...]:
    """List the paths of submodules that match `pattern`, in the order of the model.

    Args:
        model: a plain module.
        pattern: a path in which `*` and `?` stand for characters within one step of the path.
        role: `student` or `teacher`, for messages.
        what: what the pattern is called in messages.

    Raises:
        RecipeError: no path matches; the message has the nearest names.
    """
    paths = [path for path, _ in model.named_modules() if path]
    steps = pattern.split(".")
    found = tuple(
        path for path in paths
        if len(parts := path.split(".")) == len(steps) and all(map(fnmatch.fnmatchcase, parts, steps))
    )  # fmt: skip
    if not found:
        near = difflib.get_close_matches(pattern, paths, n=SHOWN, cutoff=0.5) or paths[:SHOWN]
        raise RecipeError(
            f"no module of the {role} ({type(model).__name__}) matches the {what} {pattern!r}; "
            f"nearest: {', '.join(map(repr, near)) or 'none, it has no modules'}"
        )
    return found


def graph_forward(
    graph: fx.GraphModule, paths: Sequence[str], plain: nn.Module | None = None
) -> Callable[..., tuple[Any, tuple[Tensor, ...]]]:
    """Make a forward function of a captured graph that also gives the outputs of tapped modules.

    Args:
        graph: from `capture` or `prepare`; it is not changed, and the function uses its weights.
        paths: paths of modules in the model that was captured.
        plain: that model; it tells which module has several paths.

    Returns:
        A function of the graph module and its inputs. It gives the outputs and the tapped tensors. A tapped tensor is
        read behind its fake-quantizer, as the next layer reads it; if that fake-quantizer includes a relu behind the
        module, the tensor is read in front of it.

    Raises:
        RecipeError: no operator of the graph comes from a module.
    """
    twins: dict[fx.Node, fx.Node] = {}
    tapped = fx.Graph()
    given = tapped.graph_copy(graph.graph, twins)
    tapped.output((given, tuple(twins[_node(graph, path, _names(plain, path))] for path in paths)))
    tapped.set_codegen(copy.copy(graph.graph._codegen))
    shadow = fx.GraphModule(graph, tapped)
    return cast(Callable[..., tuple[Any, tuple[Tensor, ...]]], type(shadow).forward)


def _node(graph: fx.GraphModule, path: str, names: frozenset[str]) -> fx.Node:
    """Find the last operator of a module whose result is used outside the module, or that result's fake-quantizer."""
    inside = [node for node in graph.graph.nodes if _within(node, names) and isinstance(node.meta.get("val"), Tensor)]
    leaving = [node for node in inside if any(not _within(user, names) for user in _consumers(graph, node))]
    if not leaving:
        raise RecipeError(
            f"tap {path!r} of the student left no operator in the captured graph, so there is nothing to tap in "
            "quantization-aware training; tap the layer in front of it"
        )
    last: fx.Node = leaving[-1]
    quantizers = [user for user in last.users if _quantizes(graph, user)]
    if not quantizers or cast(FakeQuantize, graph.get_submodule(str(quantizers[0].target))).relu:
        return last
    return quantizers[0]


def _names(plain: nn.Module | None, path: str) -> frozenset[str]:
    """Give all paths of the module at `path`; a graph records the path of each call."""
    if plain is None:
        return frozenset({path})
    shared = plain.get_submodule(path)
    return frozenset(name for name, module in plain.named_modules(remove_duplicate=False) if module is shared)


def _within(node: fx.Node, names: frozenset[str]) -> bool:
    return any(held[0] in names for held in node.meta.get("nn_module_stack", {}).values())


def _quantizes(graph: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), FakeQuantize)


def _consumers(graph: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that use the value of `node`; its fake-quantizer is skipped for the nodes behind it."""
    for user in node.users:
        yield from user.users if _quantizes(graph, user) else (user,)
