"""Files and factories that a recipe names for its teachers and its student. Importable without torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Recipe
    from kdq_core.recipe.strict_yaml import Document, Loc

SECTIONS = {"teacher": "'teacher.members'", "student": "'student'"}
"""The section in which a recipe names the file and factory of a teacher or a student."""


def check_files(recipe: Recipe, lines: Document | None = None) -> None:
    """Check that the files and the packages of the factories exist, without importing them.

    Args:
        recipe: a valid `Recipe`.
        lines: the document of the recipe, for file and line in messages.

    Raises:
        RecipeError: a file or a package is missing.
    """
    for index, member in enumerate(recipe.teacher.members):
        _check(member.file, member.factory, "teacher", ("teacher", "members", index), lines)
    _check(recipe.student.file, recipe.student.factory, "student", ("student",), lines)


def _check(file: str | None, factory: str | None, whose: str, loc: Loc, lines: Document | None) -> None:
    if file is not None:
        given_file(file, whose, where(lines, (*loc, "file")))
    module = (factory or "").rpartition(":")[0]
    if module.endswith(".py"):
        given_file(module, whose, where(lines, (*loc, "factory")))
    elif module and not _found(module.partition(".")[0]):
        raise RecipeError(where(lines, (*loc, "factory")) + no_factory(module, whose))


def where(lines: Document | None, loc: Loc) -> str:
    """The start of a message about `loc`: file and line, if the recipe comes from a file."""
    return f"{lines.where(loc)}: " if lines else ""


def _found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # such as __main__
        return False


def given_file(file: str, whose: str, place: str = "") -> Path:
    """Give the path of a file that must exist.

    Args:
        file: the path as the recipe has it.
        whose: `teacher` or `student`, for messages.
        place: file and line, for messages.

    Raises:
        RecipeError: it does not exist, or is a folder.
    """
    path = Path(file)
    if path.is_dir():
        raise RecipeError(
            f"{place}the {whose}'s file {file!r} is a folder; name the file in it as 'file' in {SECTIONS[whose]}"
        )
    if not path.is_file():
        raise RecipeError(
            f"{place}the {whose}'s file {file!r} is not there, seen from {str(Path.cwd())!r}; correct 'file' in "
            f"{SECTIONS[whose]}, or give its whole path"
        )
    return path


def no_factory(module: str, whose: str) -> str:
    """The message for a factory whose module KDQ does not find."""
    return (
        f"the {whose}'s factory is in {module!r}, and there is no such module; install its package, put its folder on "
        f"PYTHONPATH, or correct 'factory' in {SECTIONS[whose]} (the folder kdq runs in is not searched)"
    )
