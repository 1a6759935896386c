"""The name of a run, what it keeps below the home, and its unexpected errors."""

from __future__ import annotations

import contextlib
import itertools
import time
import traceback
from pathlib import Path

from kdq_core.errors import KdqError, StageError, UnforeseenError
from kdq_core.recipe.spec import Site
from kdq_core.store.store import explained
from kdq_core.worker.main import named
from kdq_flows.report.kept import write


def name_of(recipe: str) -> str:
    """Name of a run that starts now."""
    return f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"


def claimed_name(recipe: str, site: Site) -> str:
    """A name for a run that starts now, which no other run of this home has; its folder of logs claims it.

    Raises:
        StoreError: the home cannot be written.
    """
    logs, first = site.home / "logs", name_of(recipe)
    with explained(logs, "write the logs of the run to"):
        logs.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            name = first if number == 1 else f"{first}-{number}"
            with contextlib.suppress(FileExistsError):
                (logs / name).mkdir()
                return name
    raise AssertionError("numbers do not end")


def keep(text: str, path: Path) -> None:
    """Write a file whole or not at all."""
    with explained(path, "write the lock of the run"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, text)


def logged(error: Exception, log: Path) -> KdqError:
    """`error` as one of KDQ's own errors, converted as in a worker; writes its traceback to `log`."""
    with explained(log, "write the log"):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.writelines(traceback.format_exception(error))
    found = named(error)
    return (
        UnforeseenError(f"{found}; the traceback is in {str(log)!r}") if isinstance(found, UnforeseenError) else found
    )


def failure(error: BaseException) -> KdqError:
    """`error` as one of KDQ's own errors; a foreign error becomes a `StageError` with its class in the text."""
    return error if isinstance(error, KdqError) else StageError(f"{type(error).__name__}: {error}")
