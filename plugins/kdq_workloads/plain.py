"""Lets a user's model give what KDQ reads: a tensor of logits, or a dict of tensors by task."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdq_core.api import StageError


def plain(model: nn.Module, names: tuple[str, ...] = ()) -> nn.Module:
    """Change the class of `model` so that its `forward` gives plain logits; weights and their names stay.

    Args:
        model: changed in place. A layer of PyTorch itself stays as it is.
        names: names of the inputs. If `forward` has parameters of these names, it gets them by name.

    Raises:
        StageError: `forward` has parameters of some of these names, and not of others.
    """
    base = type(model)
    if base.__module__.startswith("torch.nn.") and not isinstance(model, nn.Sequential):
        return model
    parameters = inspect.signature(base.forward).parameters
    strange = [name for name in names if name not in parameters]
    if strange and len(strange) < len(names):
        taken = [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD][1:]
        raise StageError(
            f"the data has the input {strange[0]!r}, which forward() of {base.__name__!r} does not take; it takes: "
            f"{', '.join(taken)}; leave it out of the data, or give forward() a parameter of that name"
        )
    keywords = () if strange else names

    def whole_answer(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        if keywords and len(inputs) == len(keywords):
            inputs, named = (), dict(zip(keywords, inputs, strict=True))
        return base.forward(self, *inputs, **named)

    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        return logits_of(whole_answer(self, *inputs, **named))

    plain_ones = tuple(p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD)[1:]
    own = {"forward": forward, "whole_answer": whole_answer, "forward_parameters": plain_ones}
    own["__module__"] = base.__module__
    model.__class__ = type(base.__name__, (base,), own)
    return model


def logits_of(given: Any) -> Any:
    """Pick the logits out of a model's output.

    A tensor is the logits. An object or a dict has them as `logits`. Otherwise the first tensor of a tuple or of a
    dataclass is meant, and the only one of a dict; a dict of several tensors has a task by each name. An output of
    `transformers` is both a dict and a dataclass; without `logits`, its first tensor is meant.
    """
    if isinstance(given, Tensor):
        return given
    if isinstance(given, Mapping):
        found = {name: one for name, one in given.items() if isinstance(one, Tensor)} or dict(given)
        if "logits" in found:
            return found["logits"]
        return next(iter(found.values())) if len(found) == 1 or dataclasses.is_dataclass(given) else found
    if isinstance(getattr(given, "logits", None), Tensor):
        return given.logits
    if dataclasses.is_dataclass(given):
        given = [getattr(given, field.name) for field in dataclasses.fields(given)]
    if isinstance(given, tuple | list):
        return next((one for one in given if isinstance(one, Tensor)), given)
    return given
