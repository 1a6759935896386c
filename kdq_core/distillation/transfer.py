"""Parameter transfer: a linear map of the teacher's parameters initialises the student, which then holds some in turn.

Map: the teacher's channels are split into neighbouring groups, one for each channel of the student. An output axis
takes the mean of each group, an input axis the sum. If all channels of a group are equal, the student computes the same
as the teacher. Parameters that are added to features or scale them, such as an embedding, a bias or the weight of a
norm, take means. The map undoes the widening of Net2Net (Chen, Goodfellow and Shlens 2016, arXiv:1511.05641).
Afterwards, in each round of epochs, a random share of the transferred tensors is held fixed while all other parameters
train.

Limits: channels are grouped by position and not by function, so the map gives only a start. A linear layer behind a
flattened map mixes positions. Layers are never widened; kernel sizes and the rows of a table must be equal. In a layer
of no known kind, a parameter counts as a weight `[outputs, inputs]` if its name ends in `weight`, otherwise as one of
features. Transposed convolutions, recurrent layers and packed attention are copied if shapes are equal, and never made
narrower. Convolutions keep the number of their groups; with several groups, they are narrowed only by a whole factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from kdq_core.distillation.pairs import members
from kdq_core.errors import RecipeError
from kdq_core.reading.teachers import NO_LAYERS
from kdq_core.recipe.spec import TransferSpec
from kdq_core.teachers.onnx_teacher import OnnxTeacher
from kdq_core.training.taps import matching

UNLIKE = (nn.modules.conv._ConvTransposeNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
"""Layers whose axes have another meaning, or hold several matrices: they are copied, never made narrower."""
WEIGHTS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, ParametrizationList)
TABLES = (nn.Embedding, nn.EmbeddingBag)
NORMS = (nn.LayerNorm, nn.RMSNorm)
"""Layers whose parameters may have several axes: `WEIGHTS` outputs and inputs, `TABLES` rows and features, `NORMS` only
features."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Names of learned buffers, as in batch norm. Any other buffer, such as a table of positions, is not transferred."""


@torch.no_grad()
def transfer(spec: TransferSpec, student: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
    """Overwrite the student's parameters and statistics with the mapped ones of the teacher.

    A tied parameter is written once, by the first pair that has it. If two pairs name one layer of the student, the
    last pair counts.

    Returns:
        The names of the student's parameters that were written, as `named_parameters` gives them.

    Raises:
        RecipeError: a pattern matches nothing, a pair in the recipe cannot be mapped, `auto` finds no layer, `auto` is
            asked for with several teachers, or all teachers are ONNX models.
    """
    if all(isinstance(model, OnnxTeacher) for model in members(teacher).values()):
        raise RecipeError(NO_LAYERS)
    names = {id(parameter): name for name, parameter in student.named_parameters()}  # tied ones by their first name
    written: list[str] = []
    for ours, theirs in dict(_pairs(spec, student, teacher)).items():
        layer, source = student.get_submodule(ours), teacher.get_submodule(theirs)
        values = mapped(layer, source)
        if values is None and spec.layers == "auto":
            continue
        if values is None:
            raise RecipeError(
                f"layer {theirs!r} of the teacher {_shapes(source)} cannot be mapped to {ours!r} of the student "
                f"{_shapes(layer)}; the student's must be of the same kind, no wider, and of one kernel, groups and "
                "rows; grouped convolutions must have a whole fraction of the teacher's channels; transposed, "
                "recurrent and packed layers must have the same shapes"
            )
        own = dict(layer.named_parameters(recurse=False))
        for name, value in values.items():
            if name not in own:
                layer.get_buffer(name).copy_(value)
            elif (first := names[id(own[name])]) not in written:
                own[name].copy_(value)
                written.append(first)
    if not written:
        raise RecipeError(
            "distill.transfer finds no layer of the student with a layer of the teacher to start from; write the "
            "pairs, as layers: [[path in student, path in teacher]]"
        )
    return tuple(written)


def mapped(layer: nn.Module, source: nn.Module) -> dict[str, Tensor] | None:
    """Map the source's own parameters and statistics to the layer's shapes, by name; `None` if one cannot be mapped."""
    wanted, given = _own(layer), _own(source)
    if type(layer) is not type(source) or not wanted or wanted.keys() - given.keys():
        return None
    alike = all(given[name].shape == tensor.shape for name, tensor in wanted.items())
    if isinstance(layer, UNLIKE) and not alike:
        return None
    if not _same_groups(layer, source):
        return None
    values = {name: reduced(given[name], tensor, layer, name) for name, tensor in wanted.items()}
    possible = {name: value for name, value in values.items() if value is not None}
    return possible if len(possible) == len(values) else None


def reduced(value: Tensor, like: Tensor, layer: nn.Module, name: str) -> Tensor | None:
    """Reduce `value`, the parameter `name` of a layer, to the shape of `like`: each group of channels becomes one.

    Axis 0 of a weight takes means, axis 1 sums. A parameter that is added to features or scales them takes means along
    its one axis of features.

    Returns:
        The reduced parameter in the type of `like`; `None` if it cannot be reduced.
    """
    if value.ndim != like.ndim or any(ours > theirs for ours, theirs in zip(like.shape, value.shape, strict=True)):
        return None
    found = value
    other = {axis for axis, size in enumerate(like.shape) if size != value.shape[axis]}
    multiplies = _multiplies(layer, name)
    if other:
        exact = value.is_floating_point() or value.is_complex()
        if not exact or other - ({0, 1} if multiplies else _of_features(layer, value.shape)):
            return None
        if not multiplies and len(other) > 1:
            return None
        found = value.to(torch.promote_types(value.dtype, torch.float64))
    for axis in other:
        parts = found.tensor_split(like.shape[axis], dim=axis)
        found = torch.stack([p.sum(axis) if multiplies and axis == 1 else p.mean(axis) for p in parts], dim=axis)
    return found.to(like.dtype)


def _same_groups(layer: nn.Module, source: nn.Module) -> bool:
    """Tell whether two convolutions have the same number of groups, and no merged channels are of two groups."""
    groups = getattr(layer, "groups", 1)
    if groups != getattr(source, "groups", 1):
        return False
    if groups == 1 or not isinstance(layer, nn.modules.conv._ConvNd):
        return True
    return not any(getattr(source, of) % getattr(layer, of) for of in ("in_channels", "out_channels"))


def _multiplies(layer: nn.Module, name: str) -> bool:
    """Tell whether the parameter is a weight `[outputs, inputs, ...]`; its name decides in layers of no known kind."""
    return isinstance(layer, WEIGHTS) or (name.endswith("weight") and not isinstance(layer, (*TABLES, *NORMS)))


def _of_features(layer: nn.Module, shape: torch.Size) -> set[int]:
    """Give the axes that may hold channels. Of two axes, the first holds rows such as positions, which never merge."""
    if isinstance(layer, TABLES):
        return {1}
    long = [axis for axis, size in enumerate(shape) if size > 1]
    return {long[-1]} if len(long) == 2 else {long[0], long[-1]}


def holding(
    spec: TransferSpec, student: nn.Module, written: tuple[str, ...], *, epochs: int, seed: int
) -> dict[str, Callable[..., None]]:
    """Make the hooks of a fit that hold some transferred parameters fixed in each round of epochs.

    Each round holds the parameters that were held least so far, and draws among equals. So the numbers of rounds that
    two parameters are held differ by one at most, and each parameter trains in some round if `hold` is at most
    1 - 1 / rounds. The draw depends only on (seed, round), so that a resumed fit holds the same parameters. Held
    parameters get a gradient, which is dropped: with several processes, every parameter needs one in each step.

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
    """Draw `size` of `names` for each round: the names drawn least so far, at random among equals."""
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
        shared = [path for path, module in student.named_modules() if path in there and _own(module)]
        return [(path, (start + path).removesuffix(".")) for path in shared]  # "" is the path of the model itself
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
    statistics = [(name, value) for name, value in module.named_buffers(recurse=False) if name in STATISTICS]
    return {name: value.detach() for name, value in (*module.named_parameters(recurse=False), *statistics)}


def _shapes(module: nn.Module) -> str:
    own = ", ".join(f"{name} {tuple(value.shape)}" for name, value in _own(module).items()) or "without parameters"
    return f"({type(module).__name__}: {own})"
