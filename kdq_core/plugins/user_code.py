"""Code of the user that is not installed: `file.py:name` beside `package.module:name`.

Importable without torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from kdq_core.errors import RecipeError, did_you_mean
from kdq_core.plugins.loading import own_stdout
from kdq_core.plugins.sources import module_file


def user_module(target: str) -> str:
    """Name the module of a target, and let Python find it: the folder of a file goes to the front of `sys.path`.

    A file in a package is imported as a part of that package.

    Args:
        target: `module:name`, `path/to/file.py:name`, or either without the name; paths are seen from the folder in
            which kdq runs.

    Raises:
        RecipeError: the file does not exist, or Python would import another one under its name.
    """
    named = target.rpartition(":")[0] if ":" in target else target
    if not named.endswith(".py"):
        return named
    path = Path(named).resolve()
    if not path.is_file():
        raise RecipeError(f"{named!r} is not there, seen from {str(Path.cwd())!r}; correct the path, or give it whole")
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    if sys.path[:1] != [str(root)]:
        sys.path[:] = [str(root), *(one for one in sys.path if one != str(root))]
        importlib.invalidate_caches()
    module = ".".join(parts)
    _check_found(named, path, module)
    return module


def user_object(target: str) -> Any:
    """Import what a target names.

    Raises:
        RecipeError: the module or the name in it does not exist, or importing the module fails.
    """
    where, _, name = target.rpartition(":")
    module = user_module(target)
    try:
        with own_stdout():
            home = importlib.import_module(module)
    except Exception as error:
        raise RecipeError(
            f"{where!r} cannot be imported: {type(error).__name__}: {error}; correct it, or install what it needs"
        ) from error
    if not hasattr(home, name):
        names = [one for one in vars(home) if not one.startswith("_")]
        near = did_you_mean(name, names)
        raise RecipeError(f"{where!r} has no {name!r}{near or ';'} name a function or class that stands in it")
    return getattr(home, name)


def _check_found(named: str, path: Path, module: str) -> None:
    """Refuse a file whose name Python gives to another module."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    there = loaded if module in sys.modules else module_file(module)
    if there is None or not os.path.samefile(there, path):
        raise RecipeError(
            f"{named!r} cannot be imported, since another module is called {module!r}"
            f"{f' ({there})' if there else ''}; give the file another name"
        )
