"""Captures a PyTorch model as a graph that can be trained, edited and exported.

It uses `torch.export` (non-strict). Batch norm and dropout become modules again, so that `train()` and `eval()` work as
usual. In-place operators become their functional equivalents. A graph cannot switch off other operations that a model
runs only in training (stochastic depth, a branch on `self.training`): such a model is captured in eval mode.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kdq_core.errors import StageError
from kdq_core.quantization.faithful import faithful, is_random, why_unfaithful
from kdq_core.quantization.products import products_as_layers
from kdq_core.quantization.recurrent import Recurrent
from kdq_core.quantization.tracing import export_program, traced_gru, traced_lstm
from kdq_core.quantization.untraceable import why_untraceable

aten = torch.ops.aten

FUNCTIONAL: dict[Any, Any] = {
    aten.relu_.default: aten.relu.default,
    aten.add_.Tensor: aten.add.Tensor,
    aten.sub_.Tensor: aten.sub.Tensor,
    aten.mul_.Tensor: aten.mul.Tensor,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.hardsigmoid_.default: aten.hardsigmoid.default,
    aten.leaky_relu_.default: aten.leaky_relu.default,
    aten.silu_.default: aten.silu.default,
    aten.sigmoid_.default: aten.sigmoid.default,
    aten.relu6_.default: aten.relu6.default,
    aten.elu_.default: aten.elu.default,
    aten.dropout_.default: aten.dropout.default,
    aten.feature_dropout_.default: aten.feature_dropout.default,
    aten.alpha_dropout_.default: aten.alpha_dropout.default,
    aten.feature_alpha_dropout_.default: aten.feature_alpha_dropout.default,
    aten.rrelu_.default: aten.rrelu.default,
}
VIEWS = {
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.default, aten.slice.Tensor, aten.select.int,
}  # fmt: skip
GATED: dict[Any, Literal["lstm", "gru"]] = {
    traced_lstm._opoverload: "lstm",
    traced_gru._opoverload: "gru",
}
RECURRENT = {**dict.fromkeys(GATED, 5), aten.rnn_tanh.input: 5, aten.rnn_relu.input: 5}
"""Recurrent operators, each with the position of its dropout probability."""
DROPOUTS = {aten.dropout.default: F.dropout, aten.feature_dropout.default: F.dropout2d}
ALPHA_DROPOUTS = {aten.alpha_dropout.default, aten.feature_alpha_dropout.default}
ATTENTION = aten.scaled_dot_product_attention.default
RRELU = (1 / 8, 1 / 3)
"""Default slopes of `rrelu`."""
SWITCHES: dict[Any, tuple[int, Any]] = {
    **dict.fromkeys(DROPOUTS, (2, False)),
    ATTENTION: (4, 0.0),
    aten.batch_norm.default: (5, False),
}
"""Operators with an argument that training sets: its position, and its value in eval mode."""


def module_path(node: fx.Node) -> str:
    """Give the path of the module whose forward made `node`; empty for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


class BatchNorm(nn.Module):
    """Batch normalisation over axis 1, with the original's parameters and buffers under their old names.

    With `frozen`, it keeps the running statistics and normalises by them, in training too. `fixed` does the same for
    good: it marks a batch norm that the model itself keeps in eval mode, and no phase changes it.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None

    def __init__(self, source: nn.Module, momentum: float, eps: float) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(source, name, None))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(source, name, None))
        self.momentum, self.eps, self.frozen, self.fixed = momentum, eps, False, False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape `[B, C, ...]`."""
        learning = self.training and not self.frozen and not self.fixed
        if learning and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, learning, self.momentum, self.eps
        )

    def factor(self) -> Tensor:
        """Give the factor that it multiplies by in eval mode: gamma / sigma, float64 `[C]`."""
        gamma = torch.ones_like(self.running_mean) if self.weight is None else self.weight.detach()
        return gamma.double() / (self.running_var.double() + self.eps).sqrt()

    def offset(self) -> Tensor | float:
        """Give beta, float64 `[C]`."""
        return 0.0 if self.bias is None else self.bias.detach().double()


class Dropout(nn.Module):
    """Dropout by elements, or by channels."""

    def __init__(self, target: Any, p: float) -> None:
        super().__init__()
        self.target, self.p = target, p

    def forward(self, x: Tensor) -> Tensor:
        """Drop out in training; otherwise give `x`."""
        return DROPOUTS[self.target](x, self.p, self.training) if self.training else x


class Attention(nn.Module):
    """Scaled dot-product attention whose dropout is off in eval mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Attend; `query` `[B, H, L, E]`, `key` and `value` `[B, H, S, E]`."""
        p = self.p if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, mask, p, **kwargs)


def capture(model: nn.Module, example: tuple[Tensor, ...]) -> fx.GraphModule:
    """Turn `model` into an ATen graph with a free batch size. The model itself stays as it is.

    Args:
        model: gives one tensor, a tuple of tensors, or a dict of tensors by task.
        example: inputs, each of shape `[B, ...]` with B >= 2.

    Returns:
        A graph module in training mode with its own copy of the weights; its state dict has the model's names. In eval
        mode it gives the same as the model. Dropout and batch norm train as in the model; other operations that the
        model runs only in training may be off.

    Raises:
        StageError: the model cannot be exported, gives something other than tensors, or gives other results in eval
            mode than its graph.
    """
    name, refused, switches = type(model).__name__, None, None
    try:
        root, graph = _traced(copy.deepcopy(model).train(), example, name)
    except StageError as error:  # perhaps at a branch of training alone, such as a layer that is dropped by chance
        refused = error
    else:
        switches = _switches(graph)
        captured = _whole(root, graph, name)
        if not is_random(captured) and faithful(captured, model, example):
            return captured
    try:
        root, graph = _traced(_in_eval_mode(model), example, name)
    except StageError as error:
        raise refused or error from (refused or error).__cause__
    _switch(graph, _switches_by_mode(graph, model) if switches is None else switches)
    captured = _whole(root, graph, name)
    if not faithful(captured, model, example):
        raise StageError(f"model {name!r} cannot be captured as a graph: {why_unfaithful(captured, model, example)}")
    return captured


def _traced(model: nn.Module, example: tuple[Tensor, ...], name: str) -> tuple[nn.Module, fx.Graph]:
    root = _export(model, example).module()
    graph = cast(fx.Graph, root.graph)
    for node in list(graph.nodes):
        if node.op == "call_module":  # the guards on input shapes
            graph.erase_node(node)
    _plain_outputs(graph, name)
    _functionalise(graph)
    return root, graph


def _whole(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    _restore_modules(root, graph)
    products_as_layers(graph)
    graph.eliminate_dead_code()
    return fx.GraphModule(root, graph, class_name=name).train()


def _in_eval_mode(model: nn.Module) -> nn.Module:
    """Copy the model in eval mode. PyTorch's own attention stays in training mode: it traces dropout only there."""
    copied = copy.deepcopy(model).train()
    training = [module for module in copied.modules() if type(module) is nn.MultiheadAttention and module.training]
    copied.eval()
    for module in training:
        module.training = True
    return copied


def _switching(graph: fx.Graph) -> Iterator[tuple[tuple[Any, str, int], fx.Node]]:
    """Yield nodes with a switch, each with a key that is the same in graphs traced in training and in eval mode."""
    calls: Counter[tuple[Any, str]] = Counter()
    for node in graph.nodes:
        if node.target in SWITCHES:
            place = node.target, module_path(node)
            yield (*place, calls[place]), node
            calls[place] += 1


def _switches(graph: fx.Graph) -> dict[tuple[Any, str, int], Any]:
    found = ((key, node.args, *SWITCHES[node.target]) for key, node in _switching(graph))
    return {key: args[index] if len(args) > index else off for key, args, index, off in found}


def _switches_by_mode(graph: fx.Graph, model: nn.Module) -> dict[tuple[Any, str, int], Any]:
    """The same for a model without a training graph: dropout and batch norm are on if their module trains.

    Dropout inside of attention stays off: an eval graph does not have its share.
    """
    training = {path: module.training for path, module in copy.deepcopy(model).train().named_modules()}
    return {key: training[key[1]] for key, node in _switching(graph) if SWITCHES[node.target][1] is False}


def _switch(graph: fx.Graph, switches: Mapping[tuple[Any, str, int], Any]) -> None:
    """Let a graph traced in eval mode drop out and learn statistics at the nodes where the training graph does."""
    for key, node in _switching(graph):
        index, off = SWITCHES[node.target]
        args = [*node.args, *[None] * (index + 1 - len(node.args))]
        args[index] = switches.get(key, off)
        node.args = tuple(args)


def _export(model: nn.Module, example: tuple[Tensor, ...]) -> Any:
    try:
        return export_program(model, example)
    except Exception as error:
        raise StageError(
            f"model {type(model).__name__!r} cannot be captured as a graph: {why_untraceable(error, model)}"
        ) from error


def _plain_outputs(graph: fx.Graph, name: str) -> None:
    """Let the graph give the model's tensors directly, without pytree code around it."""
    codegen = cast(Any, graph._codegen)
    spec = codegen.pytree_info.out_spec
    output = graph.output_node()
    values = tuple(cast(Any, output.args[0]))
    remedy = "let it give a tensor, a flat tuple of tensors, or a dict of tensors by task"
    if not all(isinstance(value, fx.Node) for value in values):
        raise StageError(f"model {name!r} gives more than tensors; {remedy}")
    by_task = spec.type in (dict, OrderedDict)
    if spec.type not in (None, tuple, list) and not by_task:
        raise StageError(f"model {name!r} gives a {spec.type.__name__!r}; {remedy}")
    if spec.type is not None and spec.num_children != len(values):
        raise StageError(f"model {name!r} gives nested outputs; {remedy}")
    given: Any = values[0] if spec.type is None else values
    output.args = (dict(zip(spec.context, values, strict=True)) if by_task else given,)
    graph.set_codegen(fx.graph.CodeGen())


def _functionalise(graph: fx.Graph) -> None:
    """Replace in-place operators; later readers of the changed tensor then read the result."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in reversed(list(graph.nodes)):  # drops batch norm's counter, once a call: its module counts itself
        if node.target == aten.add_.Tensor and _counter(node).op == "get_attr" and not node.users:
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target not in FUNCTIONAL:
            continue
        changed = node.args[0]
        if changed.op == "get_attr":
            continue
        base = changed.args[0] if changed.target in VIEWS else None
        if base is not None and any(order.get(user, 0) > order[node] for user in base.users):
            raise StageError(
                f"{node.name!r} changes a view in place while its base {base.name!r} is used later; "
                "use the operator that gives a new tensor"
            )
        node.target = FUNCTIONAL[node.target]
        changed.replace_all_uses_with(node, delete_user_cb=lambda user, n=node: order[user] > order[n])


def _counter(node: fx.Node) -> fx.Node:
    """Find the node that a chain of in-place additions starts from."""
    while node.target == aten.add_.Tensor:
        node = cast(fx.Node, node.args[0])
    return node


def _restore_modules(root: nn.Module, graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target == aten.batch_norm.default or (node.target == aten.instance_norm.default and not node.args[5]):
            _restore_batch_norm(root, graph, node)
        elif node.target in DROPOUTS:  # a dropout that the model keeps in eval mode drops nothing
            p = float(node.args[1]) if node.args[2] else 0.0
            _replace(root, graph, node, Dropout(node.target, p), node.args[:1])
        elif node.target in ALPHA_DROPOUTS and not node.args[2]:
            _replace(root, graph, node, Dropout(aten.dropout.default, 0.0), node.args[:1])
        elif node.target == aten.rrelu.default and not any(node.args[3:4]):
            slopes = cast(Any, (*node.args[1:3], *RRELU[len(node.args) - 1 :]))
            node.target, node.args = aten.leaky_relu.default, (node.args[0], sum(slopes) / 2)
        elif node.target == ATTENTION:
            args = list(node.args) + [None, 0.0, False][len(node.args) - 3 :]
            kwargs = {"is_causal": args[5], **node.kwargs}
            _replace(root, graph, node, Attention(float(args[4])), tuple(args[:4]), kwargs)
        elif node.target in RECURRENT and float(node.args[RECURRENT[node.target]]) > 0:
            raise StageError(
                f"{node.name!r} drops out between its recurrent layers, which cannot be switched off in a graph; "
                "set its dropout to 0 and put nn.Dropout behind it"
            )
        elif node.target in GATED:
            biases, layers, _, _, bidirectional, batch_first = cast(Any, node.args[3:9])
            module = Recurrent(GATED[node.target], biases, layers, bidirectional, batch_first)
            states = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
            _replace(root, graph, node, module, (node.args[0], list(states), node.args[2]))


def _restore_batch_norm(root: nn.Module, graph: fx.Graph, node: fx.Node) -> None:
    holders = {
        str(a.target).rpartition(".")[0] for a in node.args[1:5] if isinstance(a, fx.Node) and a.op == "get_attr"
    }
    mean, momentum = node.args[3], node.args[6]
    if len(holders) != 1 or mean is None or not isinstance(momentum, float):
        raise StageError(
            f"batch norm {node.name!r} keeps no running statistics of its own, or no fixed momentum; "
            "use nn.BatchNorm with track_running_stats=True and a number as momentum"
        )
    (path,) = holders
    source = root.get_submodule(path)
    still = not node.args[5]
    if isinstance(source, BatchNorm):
        source.fixed = source.fixed and still
    else:
        norm = BatchNorm(source, momentum, float(cast(float, node.args[7])))
        norm.fixed = still
        _set_submodule(root, path, norm)
    _call(graph, node, path, node.args[:1], {})


def _replace(
    root: nn.Module, graph: fx.Graph, node: fx.Node, module: nn.Module, args: Any, kwargs: Any = MappingProxyType({})
) -> None:
    path = _unused(root, node.name)
    root.add_module(path, module)
    _call(graph, node, path, args, dict(kwargs))


def _call(graph: fx.Graph, node: fx.Node, path: str, args: Any, kwargs: dict[str, Any]) -> None:
    """Replace `node` by a call of the module at `path`, under its old name."""
    with graph.inserting_before(node):
        call = graph.call_module(path, args, kwargs)
    call.meta = node.meta
    node.replace_all_uses_with(call)
    name = node.name
    graph.erase_node(node)
    call.name = name


def _set_submodule(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _unused(root: nn.Module, name: str) -> str:
    while hasattr(root, name):
        name += "_"
    return name
