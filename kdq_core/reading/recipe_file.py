"""Reads a recipe from a strict YAML file; names each mistake with file, line and allowed values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from kdq_core.errors import RecipeError
from kdq_core.reading.hints import FIELDS, Hints
from kdq_core.recipe.explain import problems, summary
from kdq_core.recipe.spec import Recipe
from kdq_core.recipe.stages import with_sections
from kdq_core.recipe.strict_yaml import MAX_CHARACTERS, Document, parse, short

if TYPE_CHECKING:
    from pathlib import Path

    from kdq_core.plugins.catalog import Catalog


@dataclass(frozen=True)
class Kind:
    """What a file is, for messages: the word, the keys that it needs, and what to do with a Python file."""

    word: str
    needs: str
    python: str = ""


RECIPE = Kind(
    "recipe",
    "'name' and 'workload'",
    "; 'kdq check {path}' and 'kdq compress {path}' take a file with teacher(), student() and data(split)",
)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file. Plug-in names and options are checked by `kdq_core.reading.checks.check_recipe`.

    Args:
        path: path of the file; messages show it as given.

    Raises:
        RecipeError: the file cannot be read, is not strict YAML, or asks for something impossible.
    """
    return read_recipe_lines(path)[0]


def read_recipe_lines(path: Path) -> tuple[Recipe, Document]:
    """Read a recipe file; also give the document, which knows the line of every value.

    Raises:
        RecipeError: see `read_recipe`.
    """
    document = read_document(path)
    return recipe_from_document(document), document


def recipe_from_text(text: str, name: str = "recipe") -> Recipe:
    """Read a recipe from text; `name` stands for the file in messages.

    Raises:
        RecipeError: see `read_recipe`.
    """
    return recipe_from_document(document_from_text(text, name))


def read_document(path: Path, kind: Kind = RECIPE) -> Document:
    """Read a file as strict YAML, with the line of every key.

    Raises:
        RecipeError: the file is missing, a folder, unreadable, Python, empty, too large, not UTF-8 or not strict YAML.
    """
    data, word = _read_bytes(path, kind.word), kind.word
    if path.suffix == ".py":
        raise RecipeError(f"'{path}' is a Python file, and a {word} is a YAML file{kind.python.format(path=path)}")
    if len(data) > MAX_CHARACTERS:
        raise RecipeError(f"{word} '{path}' is larger than 1 MB; a {word} holds options, not data")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise RecipeError(f"{word} '{path}' is in UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{word} '{path}' is not a text file: byte {error.start} is no UTF-8; a {word} is a YAML file"
        ) from None
    if "\0" in text:
        raise RecipeError(f"{word} '{path}' is not a text file: byte {data.index(0)} is zero; a {word} is a YAML file")
    return document_from_text(text, str(path), kind)


def _read_bytes(path: Path, word: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise RecipeError(f"no {word} file '{path}'; check the path") from None
    except IsADirectoryError:
        inside = sorted(str(found) for pattern in ("*.yaml", "*.yml") for found in path.glob(pattern))
        hint = f", such as {inside[0]!r}" if inside else "; it holds no *.yaml"
        raise RecipeError(f"'{path}' is a folder; name a {word} file{hint}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"{word} {short(str(path))} cannot be read: {reason.lower()}") from None


def document_from_text(text: str, name: str, kind: Kind = RECIPE) -> Document:
    """Parse text that must be a mapping.

    Raises:
        RecipeError: it is empty, not strict YAML, or not a mapping.
    """
    document = parse(text, name)
    if document.value is None:
        raise RecipeError(f"{kind.word} '{name}' is empty; it needs at least {kind.needs}")
    if isinstance(document.value, list):
        raise RecipeError(
            f"{kind.word} '{name}' is a list, not a mapping; write its keys without '- ', at least {kind.needs}"
        )
    if not isinstance(document.value, dict):
        raise RecipeError(
            f"{kind.word} '{name}' is {short(document.value)}, not a mapping; it needs at least {kind.needs}"
        )
    return document


def recipe_from_document(document: Document, catalog: Catalog | None = None) -> Recipe:
    """Make a recipe from a document; KDQ converts no types (`"3"` is not a number).

    Args:
        document: a parsed YAML document.
        catalog: the installed plug-ins, to recognise options in the wrong place.

    Raises:
        RecipeError: the document does not follow the recipe format; the message lists the problems.
    """
    try:
        raw = with_sections(document.value, FIELDS)
    except RecipeError as error:
        raise RecipeError(f"{document.where(('stages',))}: {error}") from None
    try:
        return Recipe.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        lines = problems(error, Recipe, where=document.where, hint=Hints(document.value, catalog))
        raise RecipeError(summary(lines, f"recipe '{document.name}'")) from None
