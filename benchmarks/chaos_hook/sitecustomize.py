"""Stops a process behind a call that benchmarks/chaos.py names, so that it can be killed there.

Python imports this module when it starts, because chaos.py puts its folder on PYTHONPATH. It wraps the public methods
of the classes in `WATCHED` when their modules are imported. Each process adds a line `role call pid` to `calls` in the
folder CHAOS_FOLDER behind every call. If the file `point` there asks for it, the process writes its pid to `hit` and
stops itself (SIGSTOP). A method that gives a context manager is called when it is entered, and once more, as
`<call>.end`, when it is left.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

WATCHED = {"kdq_core.store.store": "Store", "mlflow.tracking.client": "MlflowClient"}
WORKER = "kdq_core.worker"


def role(words: list[str]) -> str:
    """Which process this is, by its command line: `child`, `serve` or `parent`."""
    if any(word.startswith(WORKER) for word in words):
        return "child"
    return "serve" if words[-1:] == ["serve"] else "parent"


class Tape:
    """The folder that this process and chaos.py share."""

    def __init__(self, folder: Path, role: str) -> None:
        self.folder, self.role = folder, role

    def behind(self, call: str) -> None:
        """Note a call, and stop this process if the point is here."""
        with contextlib.suppress(OSError), (self.folder / "calls").open("a") as file:
            file.write(f"{self.role} {call} {os.getpid()}\n")
        if self._is_here(call):
            os.kill(os.getpid(), signal.SIGSTOP)

    def _is_here(self, call: str) -> bool:
        try:
            point = json.loads((self.folder / "point").read_text())
            if (point["role"], point["call"]) != (self.role, call):
                return False
            lines = (self.folder / "calls").read_text().splitlines()
            if sum(line.startswith(f"{self.role} {call} ") for line in lines) < point["number"]:
                return False
            with (self.folder / "hit").open("x") as file:  # one process stops, once
                file.write(str(os.getpid()))
        except (OSError, ValueError):
            return False
        return True


def watch(cls: type, tape: Tape) -> None:
    """Wrap the public methods of a class."""
    for name, method in list(vars(cls).items()):
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(cls, name, watched(method, f"{cls.__name__}.{name}", tape))


def watched(method: Callable[..., Any], call: str, tape: Tape) -> Callable[..., Any]:
    """The method, with its calls noted."""

    @contextlib.contextmanager
    def around(manager: Any) -> Iterator[Any]:
        with manager as given:
            tape.behind(call)
            yield given
        tape.behind(f"{call}.end")

    @functools.wraps(method)
    def noted(*args: Any, **kwargs: Any) -> Any:
        found = method(*args, **kwargs)
        if isinstance(found, contextlib.AbstractContextManager) and hasattr(found, "gen"):
            return around(found)
        tape.behind(call)
        return found

    return noted


class Watcher(MetaPathFinder):
    """Wraps classes as soon as their module is there."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """The module's spec, with a loader that wraps its class."""
        if name not in WATCHED:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            watch(getattr(module, WATCHED[name]), self._tape)

        spec.loader.exec_module = exec_module
        return spec


if "CHAOS_FOLDER" in os.environ:
    sys.meta_path.insert(0, Watcher(Tape(Path(os.environ["CHAOS_FOLDER"]), role(sys.orig_argv))))
