"""Evaluator `parity`: does the shipped file answer what its simulation in PyTorch answers?

What: over the whole test split, the file in its runtime against the converted model in PyTorch: top-1 flips, and the
    difference of the outputs in steps of the output's own grid (LSB).
Formula: |file - simulation| / scale of the first output, over all its elements, rounded to 1/10,000 LSB so that float32
    arithmetic on the same integers counts as none. For a float output, which has no scale, one LSB stands for 1/255 of
    the simulation's range on the test split. A flip is a sample whose top-1 class differs; where the two classes tie
    exactly in either of the two outputs, which one wins is arbitrary: that is counted as a tie, not as a flip.
Source: after Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference": training must simulate what inference computes.
Defaults and where they come from: no options.
Costs: one pass of both over the test split; the simulation is the slower.
Limits: says nothing of a float model. Samples the test split does not have may differ.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batches, Evaluator, Metric, StageError, Subject
from kdq_evaluators.answers import answers

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


class Parity(Evaluator):
    """Flips and differences between the file and its simulation."""

    metrics: ClassVar[tuple[str, ...]] = (
        "parity_flips",
        "parity_ties",
        "parity_p50_lsb",
        "parity_p99_lsb",
        "parity_max_lsb",
    )

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:  # noqa: ARG002
        """Counts of `parity_flips` and `parity_ties`, and quantiles of the difference in LSBs; `()` without simulation.

        Raises:
            StageError: file and simulation give different shapes, or the simulation changed while it ran.
        """
        if candidate.simulation is None:
            return ()
        file, simulated = answers(candidate, batches), simulate(candidate.simulation, batches)
        if file.shape != simulated.shape:
            raise StageError(
                f"evaluator 'parity' compares outputs of one shape, but the file gives {file.shape} and its simulation "
                f"{simulated.shape}; export the model that is simulated"
            )
        flips, ties = count_flips(file, simulated)
        scale = candidate.output_scales[0] if candidate.output_scales else None
        steps = differences(file, simulated, scale)
        return (
            Metric(name="parity_flips", value=flips, unit="count", direction="lower", samples=len(file)),
            Metric(name="parity_ties", value=ties, unit="count", direction="neither", samples=len(file)),
            *(
                Metric(name=f"parity_{name}_lsb", value=value, unit="lsb", direction="lower", samples=file.size)
                for name, value in steps.items()
            ),
        )


def simulate(model: nn.Module, batches: Batches) -> np.ndarray:
    """First output of the converted model for every sample, `[N, C]`.

    Raises:
        StageError: a parameter or buffer changed meanwhile.
    """
    import numpy as np
    import torch

    before = state_hash(model)
    parts = []
    with torch.no_grad():
        for batch in batches():
            given = model(*batch.inputs)
            parts.append((given if isinstance(given, torch.Tensor) else given[0]).float().numpy())
    if state_hash(model) != before:
        raise StageError(
            "evaluator 'parity' found that the simulation changes while it is evaluated; "
            "switch its observers off and its batch norms to evaluation first"
        )
    return np.concatenate(parts)


def state_hash(model: nn.Module) -> str:
    """sha256 of all parameters and buffers, those that are not saved included."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        octets = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + octets.numpy().tobytes())
    return digest.hexdigest()


def count_flips(file: np.ndarray, simulated: np.ndarray) -> tuple[int, int]:
    """Samples whose top-1 class differs, and those of differing class that tie exactly; of outputs `[N, C]`."""
    import numpy as np

    rows = np.arange(len(file))
    ours, theirs = file.argmax(1), simulated.argmax(1)
    tied = (file[rows, ours] == file[rows, theirs]) | (simulated[rows, ours] == simulated[rows, theirs])
    differ = ours != theirs
    return int((differ & ~tied).sum()), int((differ & tied).sum())


def differences(file: np.ndarray, simulated: np.ndarray, scale: float | None) -> dict[str, float]:
    """Median, 99th percentile (an observed value, rounded up) and maximum of the difference in LSBs."""
    import numpy as np

    wide = simulated.astype(np.float64)
    lsb = scale if scale is not None else float(np.ptp(wide)) / 255 or 1.0
    steps = np.round(np.abs(file.astype(np.float64) - wide) / lsb, 4)
    p50, p99 = np.quantile(steps, (0.5, 0.99), method="higher")
    return {"p50": float(p50), "p99": float(p99), "max": float(steps.max())}
