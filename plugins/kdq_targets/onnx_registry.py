"""The exporter's table of translations, read once in a process.

`torch.onnx.export` builds it anew at each call: it reads the source of 500 functions again, which is half of the time a
small model takes. The table is the same each time; what a call adds of its own goes into a copy.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def registry_read_once() -> Iterator[None]:
    """Let exports in this block share the table; where torch keeps it elsewhere, they build their own as ever."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    copied = functools.partial(_copied, ONNXRegistry.from_torchlib)
    with mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(copied)):
        yield


_TABLES: dict[str, Any] = {}


def _copied(build: Callable[..., Any], **asked: Any) -> Any:
    name = repr(asked)
    if name not in _TABLES:
        _TABLES[name] = build(**asked)
    table = copy.copy(_TABLES[name])
    table.functions = {operator: list(found) for operator, found in table.functions.items()}
    return table
