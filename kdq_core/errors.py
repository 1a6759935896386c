"""The errors KDQ raises on purpose.

```
KdqError
├── RecipeError       the request is wrong; never retried                exit code 2
├── PluginError       a plug-in is missing, broken or misused            exit code 2
├── StoreError        the store is unreadable, full or damaged           exit code 1
└── StageError        a stage of the plan failed                         exit code 1
    ├── TransientError    the same stage may succeed on another try      exit code 1
    │   └── LockedError       another process did not give a lock back   exit code 1
    └── UnforeseenError   a mistake in the code of a stage or a plug-in   exit code 1
```

An error of exit code 2 that comes from a stage ends `kdq run` with 1: 2 is for requests of which nothing ran.

Every message says what was asked, what is true and what to do. It starts in lower case and shows values by `repr`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from kdq_core.frozen import Frozen

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class KdqError(Exception):
    """Base of all errors that are shown to the user as one paragraph."""

    exit_code = 1


class RecipeError(KdqError):
    """The recipe, the site or the command line asks for something impossible."""

    exit_code = 2


class PluginError(KdqError):
    """A plug-in is missing, quarantined, or broke its promise."""

    exit_code = 2


class StoreError(KdqError):
    """The store cannot be read or written, or what it holds is damaged."""


class StageError(KdqError):
    """A stage of the plan failed."""


class TransientError(StageError):
    """A failure of the machine rather than of the work: another try may succeed."""


class LockedError(TransientError):
    """Another process holds a lock and did not give it back in time."""


class UnforeseenError(StageError):
    """What the code of a stage or of a plug-in raised by mistake; a traceback tells more."""


class ErrorRecord(Frozen):
    """An error as it crosses a process: the name of its class and its text."""

    type: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> ErrorRecord:
        """Describe `error`; a foreign exception keeps its class name."""
        return cls(type=type(error).__name__, message=str(error) or repr(error))

    def to_error(self) -> KdqError:
        """Give the exception back; what is not KDQ's own becomes a `StageError` naming the foreign type."""
        own = {
            c.__name__: c
            for c in (RecipeError, PluginError, StoreError, StageError, TransientError, LockedError, UnforeseenError)
        }
        if self.type in own:
            return own[self.type](self.message)
        return StageError(f"{self.type}: {self.message}")


class WrongPartsError(ValueError):
    """Entries of a free mapping that follow a model of their own, and do not; for validators.

    Attributes:
        model: what they should be.
        parts: what pydantic found, by key.
    """

    def __init__(self, model: type[BaseModel], parts: Mapping[str, ValidationError]) -> None:
        super().__init__("; ".join(f"{name!r}: {error}" for name, error in parts.items()))
        self.model, self.parts = model, parts


def listing(names: Iterable[str]) -> str:
    """Sorted, comma-separated names, or `none`."""
    return ", ".join(sorted(names)) or "none"


def did_you_mean(asked: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest choice, or an empty string."""
    near = difflib.get_close_matches(asked, sorted(choices), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
