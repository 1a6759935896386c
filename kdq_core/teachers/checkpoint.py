"""Loads the weights of a teacher or a student from a safetensors file, and says in a few words what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdq_core.errors import StageError
from kdq_core.reading.given import SECTIONS

SHOWN = 3
WRAPPERS = {"module": "DataParallel and DistributedDataParallel name them", "_orig_mod": "torch.compile names them"}


def load_checkpoint(model: nn.Module, path: Path, made_by: str, whose: str = "teacher") -> None:
    """Load the weights of a file into a module.

    Args:
        model: the module; its weights are overwritten.
        path: an existing safetensors file; messages show it as given.
        made_by: the function that made the module, for messages.
        whose: `teacher` or `student`, for messages.

    Raises:
        StageError: the file is no safetensors file, or its keys and shapes differ from the module's.
    """
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise StageError(
            f"the {whose}'s file {str(path)!r} is no safetensors file: {error}; write one where the model is, with "
            f"{_saving('model', path)}"
        ) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        raise StageError(
            _misfit(weights, own, path, made_by, whose) or _as_torch_says(error, path, made_by, whose)
        ) from error


def _saving(model: str, path: Path) -> str:
    return f"safetensors.torch.save_file({model}.state_dict(), {path.with_suffix('.safetensors').name!r})"


def _misfit(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, made_by: str, whose: str) -> str:
    """Word what is missing in a file's weights, unexpected, or of another shape; empty if all keys and shapes fit."""
    wrapped, inside = _unwrapped(weights, own)
    facts, remedies = [], []
    if wrapped:
        said = dict.fromkeys(WRAPPERS[name] for name in wrapped)
        facts = [f"all its keys begin with {'.'.join(wrapped) + '.'!r}, as {' and '.join(said)}"]
        remedies = [f"save what is inside, with {_saving('.'.join(('model', *wrapped)), path)}"]
    missing = [name for name in own if name not in inside]
    unexpected = [name for name in inside if name not in own]
    shapes = [
        f"{name} {tuple(inside[name].shape)} where the module has {tuple(value.shape)}"
        for name, value in own.items()
        if name in inside and inside[name].shape != value.shape
    ]
    counts = [
        f"{len(found)} key{'s' * (len(found) > 1)} {what} ({_first(found)})"
        for found, what in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"))
        if found
    ]
    if counts:
        facts += [", ".join(counts)]
        remedies += [f"name the 'factory' in {SECTIONS[whose]} that makes the file's own module, or another file"]
    if not facts:
        return ""
    told, then = "; beside that, ".join(facts), ", and ".join(remedies)
    return f"the weights in {str(path)!r} do not fit the module of {made_by}: {told}; {then}"


def _unwrapped(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[tuple[str, ...], Mapping[str, Tensor]]:
    """Split off the wrappers that all keys of the file begin with and the module's own keys do not.

    Returns:
        The names of the wrappers, and the weights with these left out of their keys.
    """
    wrapped: tuple[str, ...] = ()
    while weights:
        first = next(iter(weights)).partition(".")[0]
        if first not in WRAPPERS or not all(name.startswith(f"{first}.") for name in weights):
            break
        if all(name.startswith(f"{first}.") for name in own):
            break
        wrapped, weights = (*wrapped, first), {name.removeprefix(f"{first}."): x for name, x in weights.items()}
    return wrapped, weights


def _first(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join([*listed[:SHOWN], *(["..."] if len(listed) > SHOWN else [])])


def _as_torch_says(error: RuntimeError, path: Path, made_by: str, whose: str) -> str:
    """Word the refusal of a module although keys and shapes fit."""
    fact = " ".join(str(error).split()).rstrip(".")
    fact = fact if len(fact) <= 300 else f"{fact[:297]}..."
    return (
        f"the weights in {str(path)!r} do not fit the module of {made_by}: {fact}; name the 'factory' in "
        f"{SECTIONS[whose]} that makes the file's own module, or another file"
    )
