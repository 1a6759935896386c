"""Evaluator `parity`: does the shipped file answer what its simulation in PyTorch answers?

What: over the whole test split, the file in its runtime against the converted model in PyTorch (`parity_...`) and
    against the prepared one, which was trained (`parity_prepared_...`): top-1 flips, and the difference of the outputs
    in steps of the output's own grid (LSB). Beside them the top-1 of prepared and converted model. Where the file
    flips or 1 % of its values are more than one LSB away, KDQ compares layer by layer and names the first that departs.
Formula: |file - simulation| / scale of the output, over all its elements, rounded to 1/10,000 LSB so that float32
    arithmetic on the same integers counts as none. For a float output, which has no scale, one LSB stands for 1/255 of
    the simulation's range on the test split. A flip is a sample whose top-1 class differs; where the two classes tie
    exactly in either of the two outputs, which one wins is arbitrary: that is counted as a tie, not as a flip.
    Agreement is the share of samples with the same class, ties not excused. Outputs `[N, ..., C]` have an answer for
    each position; one number a sample has no class, so no flips.
Source: after Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference": training must simulate what inference computes.
Defaults and where they come from: no options.
Costs: one pass of all three over the test split; the simulations are the slower. That of the file is shared with
    other evaluators.
    Of a model with several outputs the first has these names, another `parity_p99_lsb/<its name>` and so on; flips are
    counted in the first, and where labels are classes.
Limits: says nothing of a float model. Samples the test split does not have may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from kdq_core.api import Batches, Column, Evaluator, Metric, StageError, Subject
from kdq_evaluators.answers import Truth, answers, suffixes, truths
from kdq_evaluators.simulated import by_answer, count_flips, differences, first_departure, simulate

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
            for name in ("flips", "ties", "agreement", "p50_lsb", "p99_lsb", "max_lsb")
        ),
        "top1_converted",
        "top1_prepared",
    )
    columns: ClassVar[tuple[Column, ...]] = (Column(heading="flips", metric="parity_flips", form="{:.0f}"),)

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:  # noqa: ARG002
        """Counts of flips and ties, and quantiles of the difference in LSBs; `()` without simulation.

        Raises:
            StageError: file and simulation give different shapes, or the simulation changed while it ran.
        """
        if candidate.simulation is None:
            return ()
        file = answers(candidate, batches)
        known, named = truths(candidate, batches, len(file)), suffixes(candidate, len(file))
        truth = [one if given.ndim == 2 else None for one, given in zip(known, file, strict=True)]
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
            scales = (*candidate.output_scales, *[None] * len(file))
            outputs = [Output(*one) for one in zip(named, file, simulated, scales, truth, strict=False)]
            departure = partial(first_departure, candidate, batches, converting=name == "prepared")
            found += _pair(PAIRS[name], outputs, departure)
            found += [one.top1(name) for one in outputs if one.truth is not None]
        return tuple(found)


class Output(NamedTuple):
    """One output of the file and of its simulation, each `[N, ...]`.

    Attributes:
        suffix: put behind the names of its metrics.
        file: what the file gives.
        simulated: what the simulation gives.
        scale: its LSB, `None` for float.
        truth: its hard labels, where they are classes.
    """

    suffix: str
    file: np.ndarray
    simulated: np.ndarray
    scale: float | None
    truth: Truth | None

    def top1(self, simulation: str) -> Metric:
        """Share of labelled samples of which the simulation gives the class."""
        assert self.truth is not None
        right = self.simulated[self.truth.rows].argmax(1) == self.truth.classes
        name = f"top1_{simulation}{self.suffix}"
        return Metric(name=name, value=float(right.mean()), unit="fraction", direction="higher", samples=len(right))


def _pair(prefix: str, outputs: list[Output], departure: Callable[[], str]) -> list[Metric]:
    """Metrics of the file against one simulation: flips of each output of classes, differences of all."""
    flips = {one.suffix: count_flips(one.file, one.simulated) for one in outputs if one.truth or not one.suffix}
    steps = {one.suffix: differences(one.file, one.simulated, one.scale) for one in outputs}
    breach = any(count for count, _ in flips.values()) or any(step["p99"] > 1 for step in steps.values())
    note = departure() if breach else ""
    metrics: list[Metric] = []
    for one in outputs:
        if one.suffix in flips:
            (count, ties), given = flips[one.suffix], len(by_answer(one.file))
            metrics += [
                Metric(
                    name=f"{prefix}_flips{one.suffix}", value=count, unit="count", direction="lower",
                    samples=given, note=note if count else "",
                ),
                Metric(
                    name=f"{prefix}_ties{one.suffix}", value=ties, unit="count", direction="neither",
                    samples=given,
                ),
                Metric(
                    name=f"{prefix}_agreement{one.suffix}", value=1 - (count + ties) / given, unit="fraction",
                    direction="higher", samples=given,
                ),
            ]  # fmt: skip
        step = steps[one.suffix]
        metrics += [
            Metric(
                name=f"{prefix}_{name}_lsb{one.suffix}", value=step[name], unit="lsb", direction="lower",
                samples=one.file.size, note=note if name == "p99" and step["p99"] > 1 else "",
            )
            for name in QUANTILES
        ]  # fmt: skip
    return metrics


def _text(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes))
