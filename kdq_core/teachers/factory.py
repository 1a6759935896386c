"""What makes the module that a teacher's checkpoint is loaded into, where it is not the workload."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from kdq_core.errors import KdqError, StageError

MUST = "'factory' in 'teacher.members' names a function that takes no argument and returns a torch.nn.Module"


def made_by(name: str) -> nn.Module:
    """The module that a factory gives; what its own code raises gets a note that says whose it is.

    Args:
        name: `module:function`.

    Raises:
        StageError: there is no such function, it needs an argument, or it gives no module.
    """
    with _naming(name):
        function = _found(name)
        _check_call(name, function)
        model = function()
    if not isinstance(model, nn.Module):
        raise StageError(f"the teacher's factory {name!r} gave a {type(model).__name__!r}; {MUST}")
    return model


def _found(name: str) -> Callable[[], Any]:
    module, _, function = name.partition(":")
    try:
        home = importlib.import_module(module)
        if not hasattr(home, function):
            raise ImportError(f"module {module!r} has no attribute {function!r}")
    except ImportError as error:
        raise StageError(
            f"the teacher's factory {name!r} cannot be loaded: {error}; install its package, put its folder on "
            "PYTHONPATH, or correct 'factory' in 'teacher.members'"
        ) from error
    found = getattr(home, function)
    if not callable(found) or isinstance(found, nn.Module):
        raise StageError(f"the teacher's factory {name!r} is a {type(found).__name__!r}; {MUST}")
    return found  # type: ignore[no-any-return]


def _check_call(name: str, function: Callable[[], Any]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some functions in C
        return
    try:
        signature.bind()
    except TypeError as error:
        raise StageError(
            f"the teacher's factory {name!r} cannot be called without arguments: {error}; {MUST}"
        ) from error


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except KdqError:
        raise
    except Exception as error:
        error.add_note(f"the teacher's factory {name!r} ('factory' in 'teacher.members') raised it")
        raise
