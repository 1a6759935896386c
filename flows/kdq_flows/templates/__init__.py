"""Files that `kdq init` and `kdq plugins new` write: the folders `start` and `plugins` beside this module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from kdq_core.errors import RecipeError
from kdq_core.store.store import explained


def templates(*folder: str) -> list[Path]:
    """The files of a template's folder, in order."""
    found = Path(__file__).parent.joinpath(*folder).rglob("*")
    return sorted(path for path in found if path.is_file() and path.suffix != ".pyc")


def written(folder: Path, files: Mapping[str, str], *, also: Iterable[str] = ()) -> list[Path]:
    """Write files, none of which may be there.

    Args:
        folder: made if it is not there.
        files: text by path within the folder.
        also: further files that will be written there.

    Returns:
        The paths.

    Raises:
        RecipeError: a file is there already, or the folder is a file.
        StoreError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{str(folder)!r} is a file; name a folder")
    there = [name for name in (*files, *also) if (folder / name).exists()]
    if there:
        raise RecipeError(
            f"{str(folder / there[0])!r} is there already, and KDQ overwrites no file of yours; name another folder"
        )
    with explained(folder, "write to"):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]
