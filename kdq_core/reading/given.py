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
"""Where a recipe names file and factory, by whose they are."""


def check_files(recipe: Recipe, lines: Document | None = None) -> None:
    """Look whether the files and the packages of the factories are there; nothing is imported.

    Args:
        recipe: checked in itself already.
        lines: the document it was read from, for file and line in messages.

    Raises:
        RecipeError: one is not.
    """
    for index, member in enumerate(recipe.teacher.members):
        _check(member.file, member.factory, "teacher", ("teacher", "members", index), lines)
    _check(recipe.student.file, recipe.student.factory, "student", ("student",), lines)


def _check(file: str | None, factory: str | None, whose: str, loc: Loc, lines: Document | None) -> None:
    if file is not None:
        given_file(file, whose, where(lines, (*loc, "file")))
    module = (factory or "").partition(":")[0]
    if module and not _found(module.partition(".")[0]):
        raise RecipeError(where(lines, (*loc, "factory")) + no_factory(module, whose))


def where(lines: Document | None, loc: Loc) -> str:
    """How a message about `loc` begins: with file and line, where it was read from a file."""
    return f"{lines.where(loc)}: " if lines else ""


def _found(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # such as __main__
        return False


def given_file(file: str, whose: str, place: str = "") -> Path:
    """The path of a file that is to be there.

    Args:
        file: as the recipe has it.
        whose: `teacher` or `student`, for messages.
        place: file and line, for messages.

    Raises:
        RecipeError: it is not there, or a folder.
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
    """What is said where the module of a factory is not found."""
    return (
        f"the {whose}'s factory is in {module!r}, and there is no such module; install its package, put its folder on "
        f"PYTHONPATH, or correct 'factory' in {SECTIONS[whose]} (the folder kdq runs in is not searched)"
    )
