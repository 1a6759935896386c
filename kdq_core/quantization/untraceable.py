"""Finds the line of a model's own code that cannot be traced, and says what to do about it."""

from __future__ import annotations

import linecache
import re
import traceback
from pathlib import Path

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

MACHINERY = (str(Path(torch.__file__).parent), str(Path(__file__).with_name("tracing.py")), "<")
"""Prefixes of file names that are not a model's code."""
FIXED = re.compile(r"\.size\(\)\[(\d+)\] as dynamic but your code specialized it to be a constant \((\d+)\)")


def why_untraceable(error: BaseException, model: nn.Module) -> str:
    """Explain why `torch.export` refused a model: module path, file and line of the model's code, and what to do.

    Args:
        error: the exception from tracing, with its traceback.
        model: the traced module itself, not a copy.
    """
    owner, line = spot(error, model)
    at = f" ({line})" if line else ""
    if isinstance(error, GuardOnDataDependentSymNode):
        return (
            f"{owner} needs the value of a tensor, which a graph does not know{at}; compute both ways and choose with "
            "torch.where, keep numbers as tensors in place of .item(), or move the decision out of the model"
        )
    fixed = FIXED.search(str(error))
    if fixed and fixed[1] != "0":
        return (
            f"it works only with the size {fixed[2]} of axis {fixed[1]}, which the workload frees; take sizes from "
            "x.shape, or do not free that axis (OpenVINO runs recurrent layers for one length alone)"
        )
    if fixed:
        return (
            f"its forward works only for a batch of {fixed[2]} samples, the size of the example batch; "
            "take sizes from x.shape, or write -1 for the batch"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{owner} gives {text}{at}; make it free of branches on tensor values and of a fixed batch size"


def spot(error: BaseException, model: nn.Module) -> tuple[str, str]:
    """Find the innermost module whose code raised an error, and the line, as `file:line: code`.

    Lines of PyTorch itself and of tracing do not count. If no other line is found, the second value is empty.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    path, found = None, ("its forward", "")
    for frame, number in traceback.walk_tb(error.__traceback__):
        path = paths.get(id(frame.f_locals.get("self")), path)
        file = frame.f_code.co_filename
        if path is not None and not file.startswith(MACHINERY):
            owner = f"module {path!r}" if path else "its forward"
            found = owner, f"{file}:{number}: {linecache.getline(file, number).strip()}"
    return found


def layer_of(error: BaseException, model: nn.Module) -> str:
    """Give the path of the innermost module of `model` whose forward raised an error; empty for none."""
    paths = {id(module): path for path, module in model.named_modules()}
    frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    found = [paths[id(module)] for module in frames if id(module) in paths]
    return found[-1] if found else ""
