"""Evaluator `parity`: does the shipped file give the same outputs as its simulation in PyTorch?

What: runs the file in its runtime over the whole test split, and compares it with two models in PyTorch: the converted
    model (`parity_...`), and the prepared model, which was trained (`parity_prepared_...`). It compares a float file
    with the model that it was written from (`parity_...`). It counts top-1 flips, and measures the difference of the
    outputs in steps of the output's own grid (LSB). It also reports the top-1 of the prepared and the converted model.
    If a sample of the int8 file flips, or 1 % of its values differ by more than one LSB, KDQ compares layer by layer
    and names the first layer that differs.
Formula: |file - simulation| / scale of the output, over all its elements, rounded to 1/10,000 LSB so that the
    rounding of float32 arithmetic on equal integers counts as no difference. A float output has no scale; there, one
    LSB is 1/255 of the simulation's range on the test split. A flip is a sample whose top-1 class differs. If the two
    classes tie exactly in either output, the sample counts as a tie and not as a flip, because the winner is arbitrary.
    Agreement is the share of samples with the same class; ties count against it. Outputs `[N, ..., C]` have one answer
    for each position. An output with one number a sample has no class, so it has no flips. If the simulation gives NaN
    or infinity for a sample, each of its answers is a flip and its differences are left out; a note names the sample.
Source: after Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference": training must simulate what inference computes.
Defaults and where they come from: no options.
Costs: one pass of each file, of both simulations and of the float models over the test split. The simulations are
    slower than the file. All evaluators share the pass of the file.
Limits: gives no metrics for a teacher that is an ONNX file. Samples outside the test split may differ. If a model has
    several outputs, the metrics of the first have the plain names; those of another output end in its name, as in
    `parity_p99_lsb/<name>`. Flips are counted in the first output, and in each output whose labels are classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from kdq_core.api import Batches, Column, Evaluator, Metric, StageError, Subject
from kdq_evaluators.answers import Truth, answers, suffixes, truths, why_not_finite
from kdq_evaluators.simulated import by_answer, count_flips, differences, first_departure, simulate

if TYPE_CHECKING:
    import numpy as np

QUANTILES = ("p50", "p99", "max")
PAIRS = {"converted": "parity", "prepared": "parity_prepared"}
FLOAT_NOTE = "the runtime computes an operator of this model in another way than torch"


class Parity(Evaluator):
    """Flips and differences between the file and its simulations, or the model it was written from."""

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
        """Counts of flips and ties, and quantiles of the difference in LSBs; `()` if there is no simulation.

        Raises:
            StageError: file and simulation give different shapes, or the simulation changed while it ran.
        """
        import numpy as np

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
            odd = [~np.isfinite(x).reshape(len(x), -1).all(1) for x in simulated]
            outputs = [Output(*one) for one in zip(named, file, simulated, scales, truth, odd, strict=False)]
            blind = np.logical_or.reduce(odd)
            if blind.any():
                note = f"{why_not_finite(f'the {name} model', blind, batches)}; the file gives numbers there"
                found += _pair(PAIRS[name], outputs, partial(str, note))
                continue
            if candidate.role != "int8":
                found += _pair(PAIRS[name], outputs, lambda: FLOAT_NOTE)
                continue
            departure = partial(first_departure, candidate, batches, converting=name == "prepared")
            found += _pair(PAIRS[name], outputs, departure)
            found += [one.top1(name) for one in outputs if one.truth is not None]
        return tuple(found)


class Output(NamedTuple):
    """One output of the file and of its simulation, each `[N, ...]`.

    Attributes:
        suffix: appended to the names of its metrics.
        file: values from the file.
        simulated: values from the simulation.
        scale: size of one LSB; `None` for a float output.
        truth: its hard labels; `None` if they are not classes.
        odd: for which samples the simulation gives NaN or infinity, bool `[N]`; each of their answers is a flip.
    """

    suffix: str
    file: np.ndarray
    simulated: np.ndarray
    scale: float | None
    truth: Truth | None
    odd: np.ndarray

    def flips(self) -> tuple[int, int]:
        """Flips and ties; see `count_flips`."""
        count, ties = count_flips(*self._finite())
        return count + len(by_answer(self.file[self.odd])), ties

    def steps(self) -> dict[str, float]:
        """Quantiles of the difference, without the samples in `odd`; see `differences`."""
        return dict.fromkeys(QUANTILES, math.nan) if self.odd.all() else differences(*self._finite(), self.scale)

    def _finite(self) -> tuple[np.ndarray, np.ndarray]:
        return (self.file[~self.odd], self.simulated[~self.odd]) if self.odd.any() else (self.file, self.simulated)

    def top1(self, simulation: str) -> Metric:
        """Share of the labelled samples that the simulation classifies correctly."""
        assert self.truth is not None
        right = self.simulated[self.truth.rows].argmax(1) == self.truth.classes
        name = f"top1_{simulation}{self.suffix}"
        return Metric(name=name, value=float(right.mean()), unit="fraction", direction="higher", samples=len(right))


def _pair(prefix: str, outputs: list[Output], departure: Callable[[], str]) -> list[Metric]:
    """Metrics of the file against one simulation: flips of outputs with classes, differences of every output."""
    flips = {one.suffix: one.flips() for one in outputs if one.truth or not one.suffix}
    steps = {one.suffix: one.steps() for one in outputs}
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
