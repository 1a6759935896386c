"""Runs a simulation in PyTorch, measures how far a file is from it, and finds the first layer that differs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdq_core.api import Batches, Departure, StageError, Subject

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


def simulate(model: nn.Module, batches: Batches) -> tuple[np.ndarray, ...]:
    """Run a model in PyTorch; gives every output for every sample, each `[N, ...]`.

    Raises:
        StageError: a parameter or buffer changed during the run.
    """
    import numpy as np
    import torch

    before = state_hash(model)
    parts = []
    with torch.no_grad():
        for batch in batches():
            given = model(*batch.inputs)
            given = tuple(given.values()) if isinstance(given, Mapping) else given
            given = (given,) if isinstance(given, torch.Tensor) else given
            parts.append([value.float().numpy() for value in given])
    if state_hash(model) != before:
        raise StageError(
            "evaluator 'parity' found that the simulation changes while it is evaluated; "
            "switch its observers off and its batch norms to evaluation first"
        )
    return tuple(np.concatenate(values) for values in zip(*parts, strict=True))


def state_hash(model: nn.Module) -> str:
    """sha256 of all parameters and buffers, including buffers that are not saved."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        octets = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + octets.numpy().tobytes())
    return digest.hexdigest()


def count_flips(file: np.ndarray, simulated: np.ndarray) -> tuple[int, int]:
    """How many answers differ in top-1 class: first without exact ties, then those where the two classes tie.

    Args:
        file: `[N, C]`, or `[N, ..., C]` with one answer for each position; `[N]`, one number a sample, has no class.
        simulated: values of the same shape.
    """
    import numpy as np

    file, simulated = by_answer(file), by_answer(simulated)
    rows = np.arange(len(file))
    ours, theirs = file.argmax(1), simulated.argmax(1)
    tied = (file[rows, ours] == file[rows, theirs]) | (simulated[rows, ours] == simulated[rows, theirs])
    differ = ours != theirs
    return int((differ & ~tied).sum()), int((differ & tied).sum())


def by_answer(values: np.ndarray) -> np.ndarray:
    """`[N, ..., C]` reshaped to one row for each answer, `[M, C]`; `[N]` becomes `[N, 1]`."""
    return values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)


def differences(file: np.ndarray, simulated: np.ndarray, scale: float | None) -> dict[str, float]:
    """Median, 99th percentile (an observed value, rounded up) and maximum of the difference in LSBs."""
    import numpy as np

    wide = simulated.astype(np.float64)
    lsb = scale if scale is not None else float(np.ptp(wide)) / 255 or 1.0
    steps = np.round(np.abs(file.astype(np.float64) - wide) / lsb, 4)
    p50, p99 = np.quantile(steps, (0.5, 0.99), method="higher")
    return {"p50": float(p50), "p99": float(p99), "max": float(steps.max())}


def first_departure(subject: Subject, batches: Batches, *, converting: bool) -> str:
    """Name, in words, the first layer whose integers differ; KDQ takes the first batch in which a layer differs.

    Args:
        subject: the file, with its simulations.
        batches: gives the test split.
        converting: compare the prepared with the converted model first, then the converted model with the file.
    """
    from torch.fx import GraphModule

    from kdq_core.api import departures_of_conversion

    file, prepared = subject.simulation, subject.prepared
    assert file is not None
    for batch in batches():
        if converting and isinstance(prepared, GraphModule) and isinstance(file, GraphModule):
            found = departures_of_conversion(prepared, file, batch.inputs)
            if found:
                return f"converted and prepared model first differ at {_named(found)}"
        arrays = tuple(x.numpy() for x in batch.inputs)
        away = subject.target.departures(subject.path, file, arrays, threads=subject.threads)  # type: ignore[arg-type]
        if away is None:
            return "this target cannot look inside its files"
        if away:
            return f"file and converted model first differ at {_named(away)}"
    return "no layer inside the model differs; the difference arises behind the last quantizer"


def _named(found: tuple[Departure, ...]) -> str:
    first, worst = found[0], max(found, key=lambda one: one.most)
    text = f"{first.path} ({first.operator}): {first.share:.2%} of its values, by up to {first.most} LSB"
    return text if worst.most <= first.most else f"{text}; the most at {worst.path}: {worst.most} LSB"
