"""What the exporter reads anew at each call, read once.

`torch.onnx.export` builds its table of translations at each call. For that it reads the source of 500 functions, which
is half of the time a small model takes. The table is always the same; the additions of a call go into a copy.

It also lists the operators that torch can decompose, about thirty times a call; within one export they stay the same.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def registry_read_once() -> Iterator[None]:
    """Let exports in this block share the table. If torch keeps it elsewhere, each export builds its own."""
    try:
        from torch._export import utils
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        listed = functools.cache(utils._materialize_cpp_cia_ops)
    except (ImportError, AttributeError):
        yield
        return
    copied = functools.partial(_copied, ONNXRegistry.from_torchlib)
    with (
        mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(copied)),
        mock.patch.object(utils, "_materialize_cpp_cia_ops", listed),
    ):
        yield


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silence the exporter, which warns of its own internals, logs missing packages and prints progress."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def read_table() -> None:
    """Read the table that an export of this process will use. If torch keeps it elsewhere, do nothing."""
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._constants import ONNX_DEFAULT_OPSET
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        with silence():
            _copied(ONNXRegistry.from_torchlib, opset_version=ONNX_DEFAULT_OPSET)


_TABLES: dict[str, Any] = {}


def _copied(build: Callable[..., Any], **asked: Any) -> Any:
    name = repr(asked)
    if name not in _TABLES:
        _TABLES[name] = build(**asked)
    table = copy.copy(_TABLES[name])
    table.functions = {operator: list(found) for operator, found in table.functions.items()}
    return table
