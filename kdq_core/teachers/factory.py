"""Calls the `factory` of a recipe, a function that makes the module of a teacher or a student."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from kdq_core.errors import KdqError, StageError
from kdq_core.plugins.user_code import user_module
from kdq_core.reading.given import SECTIONS


def _must(whose: str) -> str:
    return f"'factory' in {SECTIONS[whose]} names a function that takes no argument and returns a torch.nn.Module"


def made_by(name: str, whose: str = "teacher") -> nn.Module:
    """Call a factory and give its module. An exception from the factory's own code gets a note that names the factory.

    Args:
        name: `module:function`.
        whose: `teacher` or `student`, for messages.

    Raises:
        StageError: the function does not exist, needs an argument, or gives no module.
    """
    with _naming(name, whose):
        function = _found(name, whose)
        _check_call(name, function, whose)
        model = function()
    if not isinstance(model, nn.Module):
        raise StageError(f"the {whose}'s factory {name!r} gave a {type(model).__name__!r}; {_must(whose)}")
    return model


def _found(name: str, whose: str) -> Callable[[], Any]:
    function = name.rpartition(":")[2]
    module = user_module(name)
    try:
        home = importlib.import_module(module)
        if not hasattr(home, function):
            raise ImportError(f"module {module!r} has no attribute {function!r}")
    except ImportError as error:
        raise StageError(
            f"the {whose}'s factory {name!r} cannot be loaded: {error}; install its package, put its folder on "
            f"PYTHONPATH, or correct 'factory' in {SECTIONS[whose]}"
        ) from error
    found = getattr(home, function)
    if not callable(found) or isinstance(found, nn.Module):
        raise StageError(f"the {whose}'s factory {name!r} is a {type(found).__name__!r}; {_must(whose)}")
    return found  # type: ignore[no-any-return]


def _check_call(name: str, function: Callable[[], Any], whose: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions in C have no signature
        return
    try:
        signature.bind()
    except TypeError as error:
        raise StageError(
            f"the {whose}'s factory {name!r} cannot be called without arguments: {error}; {_must(whose)}"
        ) from error


@contextlib.contextmanager
def _naming(name: str, whose: str) -> Iterator[None]:
    try:
        yield
    except KdqError:
        raise
    except Exception as error:
        error.add_note(f"the {whose}'s factory {name!r} ('factory' in {SECTIONS[whose]}) raised it")
        raise
