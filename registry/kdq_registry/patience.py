"""Try again what MLflow refuses only because other processes write at the same moment."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SECONDS = 90
ALIAS = ("UNIQUE constraint failed: registered_model_aliases", "registered_model_alias_pk")
"""Two processes set an alias that did not exist: SQLite's words, and the name of PostgreSQL's constraint."""
BUSY = ("is locked", "Giving up after", "deadlock", "could not serialize", "Resource temporarily unavailable", *ALIAS)


def busy(error: BaseException) -> bool:
    """Say whether an error of MLflow means that others write at the same moment."""
    return any(word in str(error) for word in BUSY)


def wait() -> None:
    """Wait a moment, of another length in each process."""
    time.sleep(random.uniform(0.05, 0.5))  # noqa: S311


def patient(call: Callable[P, T]) -> Callable[P, T]:
    """Let a function that may be repeated wait for others, up to 90 s."""

    @functools.wraps(call)
    def trying(*args: P.args, **kwargs: P.kwargs) -> T:
        from mlflow.exceptions import MlflowException

        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return call(*args, **kwargs)
            except MlflowException as error:
                if time.monotonic() > deadline or not busy(error):
                    raise
            wait()

    return trying
