"""Finds the files that a stage's code leaves outside of its draft. Importable without torch.

Python's audit events report each file opened for writing, each new folder and each rename; the stack tells which
package caused it. KDQ does not see what a library writes in C or Rust.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_TARGET = {"os.rename": 1, "os.link": 1, "os.symlink": 1, "os.mkdir": 0, "open": 0}
"""The position of the written path among the arguments of an event."""
_CACHES = re.compile(r"(_HOME|CACHE\w*|DIR)$")
"""Matches names of environment variables that hold the cache folder of a library."""
_LIBRARIES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

_watching: list[Watch] = []
_hooked = False


class Watch:
    """Notes what the code of one package writes.

    Attributes:
        written: paths outside the folders that are allowed, in the order in which they were written.
    """

    def __init__(self, package: str, others: Iterable[str], allowed: Iterable[Path]) -> None:
        """Watch `package`.

        Args:
            package: top-level package of the stage.
            others: top-level packages whose files are not the stage's, such as those of other plug-ins.
            allowed: folders in which the stage may write.
        """
        self._package, self._others = package, frozenset(others) - {package}
        self._allowed = tuple(os.path.realpath(folder) + os.sep for folder in allowed)
        self.written: dict[str, None] = {}

    def left(self) -> list[str]:
        """The written paths that still exist; a folder only if the list names nothing inside it."""
        there = [path for path in self.written if os.path.isfile(path) or os.path.isdir(path)]
        return [one for one in there if not any(other.startswith(one + os.sep) for other in there)]

    def note(self, event: str, given: Any, frame: FrameType | None) -> None:
        """Note a written path, if the stage's code wrote it."""
        path = os.path.realpath(os.fsdecode(given))
        if (path + os.sep).startswith(self._allowed) or f"{os.sep}__pycache__" in path:
            return
        if event == "os.mkdir" and os.path.isdir(path):
            return
        mine, library = self._answers(frame)
        if mine and not (library and _in_a_cache(path)):
            self.written[path] = None

    def _answers(self, frame: FrameType | None) -> tuple[bool, bool]:
        """Whether the stage's code is the nearest on the stack that answers for itself, and if a library is nearer."""
        library = False
        while frame is not None:
            top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
            if top == self._package:
                return True, library
            if top in self._others:
                return False, library
            if any(part in frame.f_code.co_filename for part in _LIBRARIES):
                library = True
            elif top not in sys.stdlib_module_names:
                return False, library
            frame = frame.f_back
        return False, library


@contextlib.contextmanager
def watching(package: str, others: Iterable[str], allowed: Iterable[Path]) -> Iterator[Watch]:
    """Watch what the code of `package` writes; see `Watch`."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_heard)  # it stays for as long as the process
        _hooked = True
    watch = Watch(package, others, allowed)
    _watching.append(watch)
    try:
        yield watch
    finally:
        _watching.remove(watch)


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event not in _TARGET:
        return
    path = arguments[_TARGET[event]]
    if isinstance(path, int) or (event == "open" and not arguments[2] & _WRITING):
        return
    with contextlib.suppress(Exception):  # an exception here would fail the call that caused the event
        frame = sys._getframe(1)
        for watch in tuple(_watching):
            watch.note(event, path, frame)


def _in_a_cache(path: str) -> bool:
    """Whether it is in a hidden folder, or where an environment variable sends a library's cache."""
    folders = (value for name, value in os.environ.items() if _CACHES.search(name) and name != "KDQ_HOME")
    caches = tuple(os.path.realpath(folder) + os.sep for folder in folders if os.path.isabs(folder))
    return f"{os.sep}." in path or path.startswith(caches)
