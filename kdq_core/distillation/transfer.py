"""Parameter transfer: a linear map of the teacher's parameters initialises the student, which then holds some in turn.

Map: channels are put into as many neighbouring groups as the student has channels. An output axis takes the mean of
each group, an input axis the sum: where all channels of a group are alike, the student computes what the teacher does.
What is added to features or scales them, as an embedding, a class token or positions, takes means along its last axis.
It undoes the widening of Net2Net (Chen, Goodfellow and Shlens 2016, arXiv:1511.05641). Afterwards, in each round of
epochs, a random share of the transferred tensors is held fixed while all other parameters train.

Limits: groups are neighbours, whatever they do, so that it is a start and no more; a linear layer behind a flattened
map mixes positions. Layers are never widened, and kernels must have one size. Transposed convolutions, recurrent layers
and packed attention are copied where shapes are the same, and never made narrower; convolutions keep their groups, and
each narrows evenly. Tied weights are one parameter, mapped as in the first module that has it. Buffers stay the
student's, but for the statistics of norms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from kdq_core.distillation.pairs import members
from kdq_core.distillation.taps import matching
from kdq_core.errors import RecipeError
from kdq_core.spec import TransferSpec
from kdq_core.teachers.checks import NO_LAYERS
from kdq_core.teachers.onnx_teacher import OnnxTeacher

UNLIKE = (nn.modules.conv._ConvTransposeNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
"""Layers whose axes mean something else, or hold several matrices: they are copied, never made narrower."""
OF_FEATURES = (nn.Embedding, nn.LayerNorm, nn.RMSNorm)
"""Layers whose weight is no matrix: its last axis is that of the features."""
STATISTICS = (nn.modules.batchnorm._NormBase,)
"""Layers whose buffers are learnt."""


@torch.no_grad()
def transfer(spec: TransferSpec, student: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
    """Overwrite the student's parameters and statistics with mapped ones of the teacher.

    Returns:
        The names of the student's parameters that were written.

    Raises:
        RecipeError: a pattern matches nothing, a written pair cannot be mapped, no layer can, there are only ONNX
            models to start from, or it was left to us to choose among several teachers.
    """
    if all(isinstance(model, OnnxTeacher) for model in members(teacher).values()):
        raise RecipeError(NO_LAYERS)
    written: list[str] = []
    first = {parameter: name for name, parameter in student.named_parameters()}  # of tied ones the first name
    for ours, theirs in _pairs(spec, student, teacher):
        layer, source = student.get_submodule(ours), teacher.get_submodule(theirs)
        values = mapped(layer, source)
        if values is None and spec.layers == "auto":
            continue
        if values is None:
            raise RecipeError(
                f"layer {theirs!r} of the teacher {_shapes(source)} cannot be mapped to {ours!r} of the student "
                f"{_shapes(layer)}; the student's must be of the same kind, no wider, and of one kernel and groups; "
                "transposed, recurrent and packed layers must have the same shapes"
            )
        for name, value in values.items():
            tensor = getattr(layer, name)
            if first.get(tensor) in written:
                continue
            tensor.copy_(value)
            written += [first[tensor]] if tensor in first else []
    if not written:
        raise RecipeError(
            "distill.transfer finds no layer of the student with a layer of the teacher to start from; write the "
            "pairs, as layers: [[path in student, path in teacher]]"
        )
    return tuple(written)


def mapped(layer: nn.Module, source: nn.Module) -> dict[str, Tensor] | None:
    """The source's own parameters and statistics in the layer's shapes, by name; `None` where they cannot be mapped."""
    wanted, given = _own(layer), _own(source)
    if type(layer) is not type(source) or not wanted or wanted.keys() - given.keys():
        return None
    alike = all(given[name].shape == tensor.shape for name, tensor in wanted.items())
    if isinstance(layer, UNLIKE) and not alike:
        return None
    groups = getattr(layer, "groups", 1)
    if groups != getattr(source, "groups", 1):
        return None
    if groups > 1 and any(a % b for name, x in wanted.items() for a, b in zip(given[name].shape, x.shape, strict=True)):
        return None  # neighbours would lie in two groups
    values = {
        name: (reduced if name == "weight" and not isinstance(layer, OF_FEATURES) else narrowed)(given[name], tensor)
        for name, tensor in wanted.items()
    }
    possible = {name: value for name, value in values.items() if value is not None}
    return possible if len(possible) == len(values) else None


def reduced(value: Tensor, like: Tensor) -> Tensor | None:
    """`value` of a layer that multiplies, with channels in groups: means along axis 0, sums along axis 1."""
    if value.ndim != like.ndim or value.shape[2:] != like.shape[2:]:
        return None
    return _grouped(_grouped(value, like, 0, torch.mean), like, 1, torch.sum)


def narrowed(value: Tensor, like: Tensor) -> Tensor | None:
    """`value` that meets features of its own width, with means of groups along the last axis; others stay as long."""
    if value.ndim != like.ndim or value.shape[:-1] != like.shape[:-1]:
        return None
    return _grouped(value, like, value.ndim - 1, torch.mean)


def _grouped(value: Tensor | None, like: Tensor, axis: int, merge: Callable[..., Tensor]) -> Tensor | None:
    """One value for each group of neighbours along `axis`, as many as `like` has; `None` where that has more."""
    if value is None or axis not in range(like.ndim) or value.shape[axis] == like.shape[axis]:
        return value
    if value.shape[axis] < like.shape[axis]:
        return None
    parts = value.double().tensor_split(like.shape[axis], dim=axis)
    return torch.stack([merge(part, axis) for part in parts], dim=axis).to(like.dtype)


def holding(
    spec: TransferSpec, student: nn.Module, written: tuple[str, ...], *, epochs: int, seed: int
) -> dict[str, Callable[..., None]]:
    """What `fit` is to call so that in each round of epochs some transferred parameters stay as they are.

    Each round takes those that were held least so far, at random among equals: each is held in as many rounds, give or
    take one, and trains in some round where `hold` is at most 1 - 1 / rounds. Which ones is a function of (seed, round)
    alone, so that a resumed fit holds the same. They get a gradient, which is dropped: several processes expect one of
    every parameter in each step.

    Returns:
        `before_epoch` and `after_backward` of `FitHooks`.
    """
    parameters = dict(student.named_parameters())
    rounds = spec.rounds_in(epochs)
    drawn = _drawn(written, rounds, int(spec.hold * len(written)), seed)
    held: set[str] = set()

    def before_epoch(epoch: int) -> None:
        held.clear()
        held.update(drawn[epoch * rounds // epochs])

    def after_backward() -> None:
        for name in held:
            parameters[name].grad = None

    return {"before_epoch": before_epoch, "after_backward": after_backward}


def _drawn(names: tuple[str, ...], rounds: int, size: int, seed: int) -> list[list[str]]:
    """`size` of `names` for each round: those drawn least so far, at random among equals."""
    generator, times, drawn = torch.Generator().manual_seed(seed), dict.fromkeys(names, 0), []
    for _ in range(rounds):
        order = [names[index] for index in torch.randperm(len(names), generator=generator).tolist()]
        drawn.append(sorted(order, key=times.__getitem__)[:size])
        for name in drawn[-1]:
            times[name] += 1
    return drawn


def _pairs(spec: TransferSpec, student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    if spec.layers == "auto":
        found = members(teacher)
        if len(found) > 1:
            raise RecipeError(
                f"distill.transfer with layers: auto starts from one teacher, and there are {len(found)}; write the "
                "pairs, as layers: [[path in student, members.0.path in the first teacher]]"
            )
        ((start, model),) = found.items()
        there = dict(model.named_modules())
        own = ((path, module) for path, module in student.named_modules() if path in there and _own(module))
        return [(path, (start + path).removesuffix(".")) for path, _ in own]
    pairs: list[tuple[str, str]] = []
    for ours, theirs in spec.layers:
        left = matching(student, ours, "student", "layer of distill.transfer")
        right = matching(teacher, theirs, "teacher", "layer of distill.transfer")
        if len(left) != len(right):
            raise RecipeError(
                f"the layers [{ours!r}, {theirs!r}] of distill.transfer match {len(left)} modules of the student and "
                f"{len(right)} of the teacher; write them as pairs"
            )
        pairs += zip(left, right, strict=True)
    return pairs


def _own(module: nn.Module) -> Mapping[str, Tensor]:
    learnt = module.named_buffers(recurse=False) if isinstance(module, STATISTICS) else ()
    return {name: value.detach() for name, value in (*module.named_parameters(recurse=False), *learnt)}


def _shapes(module: nn.Module) -> str:
    own = ", ".join(f"{name} {tuple(value.shape)}" for name, value in _own(module).items()) or "without parameters"
    return f"({type(module).__name__}: {own})"
