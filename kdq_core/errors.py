"""The errors KDQ raises on purpose.

```
KdqError
├── RecipeError       the request is wrong; never retried                exit code 2
│   └── UnusedError       a setting means nothing to its plug-in         exit code 2
├── NoCandidateError  no branch of a study meets its goals               exit code 3
├── PluginError       a plug-in is missing, broken or misused            exit code 2
├── StoreError        the store is unreadable, full or damaged           exit code 1
├── LostError         another process promoted at the same moment        exit code 3
└── StageError        a stage of the plan failed                         exit code 1
    ├── TransientError    the same stage may succeed on another try      exit code 1
    │   └── LockedError       another process did not give a lock back   exit code 1
    └── UnforeseenError   a mistake in the code of a stage or a plug-in   exit code 1
```

If a stage raises an error of exit code 2, `kdq run` still exits with 1: 2 means that nothing ran.

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


class UnusedError(RecipeError):
    """The recipe has a setting that means nothing to the plug-in that it names.

    Attributes:
        loc: where the setting stands, such as `("quantize", "fit")`.
    """

    def __init__(self, message: str, loc: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.loc = loc


class NoCandidateError(KdqError):
    """No branch of a study meets its goals."""

    exit_code = 3


class PluginError(KdqError):
    """A plug-in is missing, quarantined, or breaks its contract."""

    exit_code = 2


class StoreError(KdqError):
    """The store cannot be read or written, or an entry is damaged."""


class LostError(KdqError):
    """Another process moved an alias at the same moment; the message names who and what."""

    exit_code = 3


class StageError(KdqError):
    """A stage of the plan failed."""


class TransientError(StageError):
    """A failure of the machine rather than of the work: another try may succeed."""


class LockedError(TransientError):
    """Another process holds a lock and did not release it in time."""


class UnforeseenError(StageError):
    """The code of a stage or plug-in raised an exception by mistake; the log has its traceback."""


class ErrorRecord(Frozen):
    """An error on its way to another process: the name of its class and its text."""

    type: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> ErrorRecord:
        """Describe `error`; a foreign exception keeps its class name."""
        return cls(type=type(error).__name__, message=str(error) or repr(error))

    def to_error(self) -> KdqError:
        """Make the exception again; one that is not KDQ's becomes a `StageError` that names its class."""
        own = {
            c.__name__: c
            for c in (RecipeError, PluginError, StoreError, StageError, TransientError, LockedError, UnforeseenError)
        }
        if self.type in own:
            return own[self.type](self.message)
        return StageError(f"{self.type}: {self.message}")


class WrongPartsError(ValueError):
    """Some values of a mapping do not fit the model that each must follow; validators raise it.

    Attributes:
        model: the model.
        parts: pydantic's error for each wrong value, by key.
    """

    def __init__(self, model: type[BaseModel], parts: Mapping[str, ValidationError]) -> None:
        super().__init__("; ".join(f"{name!r}: {error}" for name, error in parts.items()))
        self.model, self.parts = model, parts


def listing(names: Iterable[str]) -> str:
    """Sorted, comma-separated names, or `none`."""
    return ", ".join(sorted(names)) or "none"


def nearest(asked: str, choices: Iterable[str], most: int = 5) -> str:
    """At most `most` names, comma-separated, the nearest of many first, and how many more there are; or `none`."""
    names = sorted(choices)
    if len(names) <= most:
        return listing(names)
    near = difflib.get_close_matches(asked, names, n=most, cutoff=0.5)
    return f"{', '.join(near or names[:most])} and {len(names) - len(near or names[:most])} more"


def did_you_mean(asked: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest choice, or an empty string."""
    near = difflib.get_close_matches(asked, sorted(choices), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
