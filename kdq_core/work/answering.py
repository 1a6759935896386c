"""The first answer of a model: whether it takes the inputs that the workload gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdq_core.errors import KdqError, StageError
from kdq_core.training.losses import outputs_of

if TYPE_CHECKING:
    from torch import nn

    from kdq_core.tensors import Batch, Outputs


def answer(role: str, model: nn.Module, batch: Batch) -> Outputs:
    """Call a model in eval mode; afterwards the mode of each of its modules is as before.

    Raises:
        StageError: it fails; the message has the shapes of its inputs.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            return outputs_of(model.eval(), batch)
    except KdqError:
        raise
    except Exception as error:
        shapes = " and ".join(str(tuple(x.shape)) for x in batch.inputs)
        raise StageError(
            f"the {role} cannot answer for inputs of shape {shapes}: {in_short(error)}; give the data the shape that "
            f"the {role} reads, or change the {role}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training


def left_out(model: nn.Module, batch: Batch) -> str:
    """Shapes of the tensors of a tuple that a model of the user's own gives; empty if it gives one tensor.

    Such a model has `whole_answer`, because its `forward` gives KDQ the logits alone.
    """
    whole = getattr(model, "whole_answer", None)
    if whole is None:
        return ""
    with torch.no_grad():
        given = whole(*batch.inputs)
    shapes = (
        [str(list(one.shape[1:])) for one in given if isinstance(one, Tensor)] if type(given) in (tuple, list) else []
    )
    return f", the first of {len(shapes)} tensors: {', '.join(shapes)}" if len(shapes) > 1 else ""


def in_short(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no text'}"
