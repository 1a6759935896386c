"""Pairs the layers of student and teacher to compare: as the recipe lists them, or the last of each resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from kdq_core.errors import RecipeError
from kdq_core.teachers.members import Ensemble, Normalized, Reads
from kdq_core.teachers.onnx_teacher import OnnxTeacher
from kdq_core.training.taps import Layer, layers, matching

Taps = Literal["auto"] | Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Pair:
    """A module of the student and one of the teacher; `name` is the pair's name in features and projectors."""

    student: str
    teacher: str

    @property
    def name(self) -> str:
        """The pair's name: readable, unique among pairs, and allowed as a key of a `ModuleDict`."""
        return f"{self.student}~{self.teacher}".replace(".", "/")


def resolved(
    taps: Taps, student: nn.Module, teacher: nn.Module, run: tuple[Callable[[], Any], Callable[[], Any]], user: str
) -> tuple[Pair, ...]:
    """Find the pairs that the recipe asks for. With `auto` and several teachers, each teacher has its own pairs.

    Args:
        taps: `auto`, or pairs of patterns; both patterns of a pair must match the same number of modules.
        student: a plain module, before it is captured.
        teacher: a plain module.
        run: a function that runs the student on some samples, and one for the teacher.
        user: name of the distiller, for messages.

    Raises:
        RecipeError: a pattern matches nothing, or the two sides do not fit.
    """
    if taps == "auto":
        found = layers(student, run[0])
        return tuple(pair for its in of_members(teacher, run[1], user) for pair in automatic(found, its, user))
    pairs: list[Pair] = []
    for ours, theirs in taps:
        try:
            left, right = matching(student, ours, "student"), matching(teacher, theirs, "teacher")
        except RecipeError as error:
            raise RecipeError(f"taps of distiller {user!r}: {error}") from error
        if len(left) != len(right):
            raise RecipeError(
                f"the taps [{ours!r}, {theirs!r}] of distiller {user!r} match {len(left)} modules of the student "
                f"({', '.join(left)}) and {len(right)} of the teacher ({', '.join(right)}); write them as pairs"
            )
        pairs += [Pair(a, b) for a, b in zip(left, right, strict=True)]
    return tuple(dict.fromkeys(pairs))


def members(teacher: nn.Module) -> dict[str, nn.Module]:
    """Give the models of a recipe's teachers without the modules that wrap them, by the prefix of their paths."""
    if isinstance(teacher, Ensemble):
        each = ((f"members.{index}.", member) for index, member in enumerate(teacher.members))
        return {start + path: model for start, member in each for path, model in members(member).items()}
    if isinstance(teacher, Normalized | Reads):
        return {f"model.{path}": model for path, model in members(teacher.model).items()}
    return {"": teacher}


def of_members(teacher: nn.Module, run: Callable[[], object], user: str) -> list[list[Layer]]:
    """List the layers of each of a recipe's teachers, with paths from the one module that holds all teachers.

    Raises:
        RecipeError: one of them is an ONNX model.
    """
    found = members(teacher)
    closed = [number for number, model in enumerate(found.values(), 1) if isinstance(model, OnnxTeacher)]
    if closed:
        instead = "use a distiller of outputs, such as 'logit-kd', or a teacher from a checkpoint"
        read = next((start for start, model in found.items() if not isinstance(model, OnnxTeacher)), None)
        if read is not None:
            instead = f"write the pairs with another teacher, as taps: [[path in student, {read}path in that teacher]]"
        raise RecipeError(
            f"taps: auto of distiller {user!r} finds nothing in teacher {closed[0]}: an ONNX model has no modules to "
            f"compare with; {instead}"
        )
    return [[replace(layer, path=start + layer.path) for layer in layers(model, run)] for start, model in found.items()]


def automatic(student: Sequence[Layer], teacher: Sequence[Layer], user: str) -> tuple[Pair, ...]:
    """Pair the last layer of each resolution that both models have.

    The resolution of maps `[B, C, H, W]` is `(H, W)`. The resolution of a sequence `[B, L, C]` is its length L. Vectors
    `[B, C]` have none, so the last hidden vectors of both models are a pair. Maps of one pixel are left out: they have
    no positions to compare.

    Raises:
        RecipeError: the models share no resolution.
    """
    ours, theirs = last_of_each(student), last_of_each(teacher)
    pairs = tuple(Pair(path, theirs[key]) for key, path in ours.items() if key in theirs)
    if not pairs:
        raise RecipeError(
            f"taps: auto of distiller {user!r} finds no layers to pair: the student has {_listed(ours)}, the teacher "
            f"has {_listed(theirs)}; write the pairs, as taps: [[path in student, path in teacher]]"
        )
    return pairs


def last_of_each(found: Iterable[Layer]) -> dict[tuple[int, ...], str]:
    """Find the path of the last layer of each resolution; a key is the number of dimensions, then the resolution."""
    last: dict[tuple[int, ...], str] = {}
    for layer in found:
        dims = len(layer.shape)
        places = layer.shape[:1] if dims == 2 else layer.shape[1:]
        if dims and (dims == 1 or any(size > 1 for size in places)):
            last.pop((dims, *places), None)  # moves it to the end, to keep the order of the last layers
            last[dims, *places] = layer.path
    return last


def _listed(last: dict[tuple[int, ...], str]) -> str:
    words = [f"{path!r} {'x'.join(map(str, key[1:])) or 'a vector'}" for key, path in last.items()]
    return ", ".join(words) or "none"
