"""Evaluator `parity`: does the shipped file answer what its simulation in PyTorch answers?

What: over the whole test split, the file in its runtime against the converted model in PyTorch (`parity_...`) and
    against the prepared one, which was trained (`parity_prepared_...`): top-1 flips, and the difference of the outputs
    in steps of the output's own grid (LSB). Beside them the top-1 of prepared and converted model. Where the file
    flips or 1 % of its values are more than one LSB away, a walk from layer to layer names the first that departs.
Formula: |file - simulation| / scale of the output, over all its elements, rounded to 1/10,000 LSB so that float32
    arithmetic on the same integers counts as none. For a float output, which has no scale, one LSB stands for 1/255 of
    the simulation's range on the test split. A flip is a sample whose top-1 class differs; where the two classes tie
    exactly in either of the two outputs, which one wins is arbitrary: that is counted as a tie, not as a flip.
Source: after Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference": training must simulate what inference computes.
Defaults and where they come from: no options.
Costs: one pass of all three over the test split; the simulations are the slower.
Limits: says nothing of a float model. Samples the test split does not have may differ. Flips are counted in the first
    output; further outputs give differences, as `parity_output_1_p99_lsb`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batches, Evaluator, Metric, StageError, Subject
from kdq_evaluators.answers import all_answers
from kdq_evaluators.simulated import classes, count_flips, differences, first_departure, simulate

if TYPE_CHECKING:
    import numpy as np

QUANTILES = ("p50", "p99", "max")
PAIRS = {"converted": "parity", "prepared": "parity_prepared"}


class Parity(Evaluator):
    """Flips and differences between the file and its simulations."""

    metrics: ClassVar[tuple[str, ...]] = (
        *(
            f"{prefix}_{name}"
            for prefix in PAIRS.values()
            for name in ("flips", "ties", "p50_lsb", "p99_lsb", "max_lsb")
        ),
        "top1_converted",
        "top1_prepared",
    )

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:  # noqa: ARG002
        """Counts of flips and ties, and quantiles of the difference in LSBs; `()` without simulation.

        Raises:
            StageError: file and simulation give different shapes, or the simulation changed while it ran.
        """
        if candidate.simulation is None:
            return ()
        file, labels = all_answers(candidate, batches), classes(batches)
        found: list[Metric] = []
        for name, model in {"converted": candidate.simulation, "prepared": candidate.prepared}.items():
            if model is None:
                continue
            simulated = simulate(model, batches)
            shapes, ours = [x.shape for x in file], [x.shape for x in simulated]
            if shapes != ours:
                raise StageError(
                    f"evaluator 'parity' compares outputs of one shape, but the file gives {_text(shapes)} and its "
                    f"simulation {_text(ours)}; export the model that is simulated"
                )
            found += _pair(PAIRS[name], file, simulated, candidate, batches)
            if labels is not None and simulated[0].ndim == 2:
                share = float((simulated[0].argmax(1) == labels).mean())
                found.append(
                    Metric(name=f"top1_{name}", value=share, unit="fraction", direction="higher", samples=len(labels))
                )
        return tuple(found)


def _pair(
    prefix: str, file: tuple[np.ndarray, ...], simulated: tuple[np.ndarray, ...], candidate: Subject, batches: Batches
) -> list[Metric]:
    """Metrics of the file against one simulation."""
    flips, ties = count_flips(file[0], simulated[0])
    scales = (*candidate.output_scales, *[None] * len(file))
    steps = [differences(ours, theirs, scale) for ours, theirs, scale in zip(file, simulated, scales, strict=False)]
    note = ""
    if flips or any(one["p99"] > 1 for one in steps):
        note = first_departure(candidate, batches, converting=prefix == PAIRS["prepared"])
    samples = len(file[0])
    metrics = [
        Metric(
            name=f"{prefix}_flips", value=flips, unit="count", direction="lower", samples=samples,
            note=note if flips else "",
        ),
        Metric(name=f"{prefix}_ties", value=ties, unit="count", direction="neither", samples=samples),
    ]  # fmt: skip
    for index, one in enumerate(steps):
        middle = f"_output_{index}" if index else ""
        metrics += [
            Metric(
                name=f"{prefix}{middle}_{name}_lsb", value=one[name], unit="lsb", direction="lower",
                samples=file[index].size, note=note if name == "p99" and one["p99"] > 1 else "",
            )
            for name in QUANTILES
        ]  # fmt: skip
    return metrics


def _text(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes))
