"""Files, factories and code that a recipe names. Importable without torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError
from kdq_core.plugins.user_code import user_module

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Plugin
    from kdq_core.recipe.spec import Recipe
    from kdq_core.recipe.strict_yaml import Document, Loc

SECTIONS = {"teacher": "'teacher.members'", "student": "'student'"}
"""The section in which a recipe names the file and factory of a teacher or a student."""
TORCH_SAVE = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""First bytes of a file from `torch.save`: a zip archive, or from old versions a pickle that begins with a long number.

A safetensors file begins with the length of its header, which may have the first byte of a pickle, but not all four.
"""


def check_files(recipe: Recipe, lines: Document | None = None) -> None:
    """Check that the files and the packages of the factories exist, without importing them.

    Args:
        recipe: a valid `Recipe`.
        lines: the document of the recipe, for file and line in messages.

    Raises:
        RecipeError: a file or a package is missing.
    """
    for index, member in enumerate(recipe.teacher.members):
        loc: Loc = ("teacher", "members", index)
        if member.file is not None:
            given_file(member.file, "teacher", where(lines, (*loc, "file")), onnx=member.source == "onnx")
        _check_factory(member.factory, "teacher", where(lines, (*loc, "factory")))
    if recipe.student.file is not None:
        given_file(recipe.student.file, "student", where(lines, ("student", "file")))
    _check_factory(recipe.student.factory, "student", where(lines, ("student", "factory")))


def check_code(workload: Plugin, lines: Document | None = None) -> None:
    """Check that the Python files with the workload's models, data and loss exist, without importing them.

    Raises:
        RecipeError: a file is missing, or Python would import another one under its name.
    """
    for target in workload.runs():
        try:
            user_module(target)
        except RecipeError as error:
            raise RecipeError(f"{where(lines, ('workload',))}{error}") from None


def _check_factory(factory: str | None, whose: str, place: str) -> None:
    module = (factory or "").rpartition(":")[0]
    if module.endswith(".py"):
        given_file(module, whose, place)
    elif module and not _found(module.partition(".")[0]):
        raise RecipeError(place + no_factory(module, whose))


def where(lines: Document | None, loc: Loc) -> str:
    """The start of a message about `loc`: file and line, if the recipe comes from a file."""
    return f"{lines.where(loc)}: " if lines else ""


def _found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # such as __main__
        return False


def given_file(file: str, whose: str, place: str = "", *, onnx: bool = False) -> Path:
    """Give the path of a file that must exist, and that `torch.save` must not have written.

    Args:
        file: the path as the recipe has it.
        whose: `teacher` or `student`, for messages.
        place: file and line, for messages.
        onnx: it should be an ONNX file, and not a safetensors file.

    Raises:
        RecipeError: it does not exist, is a folder, cannot be read, or is a file of `torch.save`.
    """
    path, named = Path(file), f"{place}the {whose}'s file {file!r}"
    if path.is_dir():
        raise RecipeError(f"{named} is a folder; name the file in it as 'file' in {SECTIONS[whose]}")
    if not path.is_file():
        raise RecipeError(
            f"{named} is not there, seen from {str(Path.cwd())!r}; correct 'file' in {SECTIONS[whose]}, or give its "
            "whole path"
        )
    if _begins(path, named).startswith(TORCH_SAVE):
        raise RecipeError(f"{named} was written by torch.save, and KDQ reads {_instead(path, onnx)}")
    return path


def _begins(path: Path, named: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise RecipeError(f"{named} cannot be read: {str(error.strerror).lower()}; correct its permissions") from None


def _instead(path: Path, onnx: bool) -> str:
    if onnx:
        return "an ONNX file there; export the model with torch.onnx.export, or write source: checkpoint"
    return (
        "a safetensors file there; if it holds a state_dict, convert it with safetensors.torch.save_file(torch.load("
        f"{path.name!r}), {path.with_suffix('.safetensors').name!r}), else write model.state_dict() in that way where "
        "the model is"
    )


def no_factory(module: str, whose: str) -> str:
    """The message for a factory whose module KDQ does not find."""
    return (
        f"the {whose}'s factory is in {module!r}, and there is no such module; install its package, put its folder on "
        f"PYTHONPATH, or correct 'factory' in {SECTIONS[whose]} (the folder kdq runs in is not searched)"
    )
