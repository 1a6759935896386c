"""Writes the forms of a file that a target names, measures them beside each other, and chooses the fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from kdq_core.errors import StageError
from kdq_core.plugins.forms import Form, PlacingTarget
from kdq_core.plugins.kinds import Quantizer
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert
from kdq_core.quantization.minmax import MinMaxFakeQuantize
from kdq_core.quantization.placing import Placement, placed
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.recipe.spec import QuantizeSpec
from kdq_core.store.records import ChosenForm, TimedForm
from kdq_core.timing.times import Times
from kdq_core.timing.turns import ROUNDS, measure_times
from kdq_core.work.models import new_student

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from kdq_core.grids.place import Place
    from kdq_core.work.work import StageWork

FLOAT, INT8 = "float file", "int8"
SECONDS = 0.25
"""About how long all calls of one file take."""
LONGER = 4
"""How many times as long KDQ measures again if a form seems to be faster than int8 and is not shown to be."""
SEEMS = 1.02
"""A form seems to be faster if its median time is less by this factor."""
CONFIDENCE = 0.99
"""Several forms are compared, so each interval is wider than that of a single comparison."""
CALIBRATION = 32
"""Fewest samples that the ranges come from."""
NOISE = 1e-2
"""Added to the untrained weights, so that no two layers are equal: a runtime would merge them."""


class Ranges(Quantizer):
    """Moving ranges, as the plainest quantizer has them: the integers of a weight do not change its kernel's time."""

    def fake_quantizer(self, place: Place) -> MinMaxFakeQuantize:
        """A new fake-quantizer for `place`."""
        return MinMaxFakeQuantize(place)


@dataclass(frozen=True)
class Bench:
    """An untrained student and what writes its files.

    Attributes:
        student: in eval mode.
        inputs: of one call, each `[B, ...]`, and as many samples more as the calibration needs.
        target: with its own options.
        spec: bits and rules.
        folder: for the files.
        batch_size: samples in a call.
    """

    student: nn.Module
    inputs: tuple[Tensor, ...]
    target: PlacingTarget
    spec: QuantizeSpec
    folder: Path
    batch_size: int

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Inputs of two samples."""
        return tuple(x[:2] for x in self.inputs)

    @cached_property
    def graph(self) -> GraphModule:
        """The captured student."""
        return capture(self.student, self.example)

    def placed(self, target: PlacingTarget) -> Placement:
        """The places of one form."""
        return placed(self.graph, target, Ranges(), self.spec)

    @torch.no_grad()
    def write(self, form: Form | None) -> Path:
        """Write one form of the file, or the float file for `None`."""
        path = self.folder / f"{FLOAT if form is None else form.name}.onnx"
        if path.exists():
            return path
        if form is None:
            self.target.export(self.student, self.example, path)
            return path
        target = self.target.formed(form.options)
        model = prepare(self.graph, self.placed(target).places, Ranges()).eval()
        set_phase(model, observe=True, quantize=False, freeze_batch_norm=True)
        model(*self.inputs)
        set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
        target.export(convert(model), self.example, path)
        return path

    def timed(self, forms: Sequence[Form], longer: int = 1) -> tuple[Times, dict[str, Times]]:
        """Measure the float file and forms beside each other; gives the times of the float file, and by form."""
        openers = [partial(self.target.session, self.write(form), threads=1) for form in (None, *forms)]
        rows = tuple(np.ascontiguousarray(x[: self.batch_size].numpy()) for x in self.inputs)
        ((plain, *others),) = measure_times(openers, [rows], seconds=SECONDS * longer * len(openers), rounds=ROUNDS)
        return plain, {form.name: times for form, times in zip(forms, others, strict=True)}


def chosen_form(work: StageWork) -> ChosenForm:
    """Find the fastest form of the student's file.

    Raises:
        RecipeError: the recipe's rules do not fit the student.
        StageError: the student cannot be captured or written, or the split `validation` is empty.
    """
    target = work.target
    assert isinstance(target, PlacingTarget)
    asked, size = work.section("quantize"), target.batch_size
    spec = QuantizeSpec(activations=asked.activations, edges=asked.edges, rules=asked.rules)
    return fastest(Bench(untrained(work), inputs(work, size), target, spec, work.scratch, size), work.progress)


def untrained(work: StageWork) -> nn.Module:
    """The student, with weights that are no trained ones but differ from layer to layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = work.model("student") if work.has("student") else new_student(work)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(NOISE * torch.randn_like(parameter))
    return student.eval()


def inputs(work: StageWork, batch_size: int) -> tuple[Tensor, ...]:
    """Inputs from the split `validation`: as many samples as a call has, and as the calibration needs."""
    wanted = max(batch_size, CALIBRATION)
    batch = next(iter(work.workload.batches("validation", batch_size=wanted)), None)
    if batch is None or not len(batch.ids):
        raise StageError("the stage 'place' measures with samples of the split 'validation', which is empty; give some")
    rows = torch.arange(wanted) % len(batch.ids)
    return tuple(x[rows] for x in batch.inputs)


def fastest(bench: Bench, tell: Callable[[int, int, str], None]) -> ChosenForm:
    """Measure the forms that the target names, and choose one.

    If noise hides whether a form is faster than int8, KDQ measures once more, and longer. The form with every operator
    in float computes as the float file does, so it is measured only if int8 is not shown faster than that file. If
    several families gain in float, they are also measured together.
    """
    whole = Form(name=INT8)
    named = bench.target.forms(bench.graph, keep_float=bench.placed(bench.target).keep_float)
    families, everything = named[:-1], named[-1:]
    forms = [whole, *families]
    tell(0, 2, "writes and measures the forms")
    plain, times = bench.timed(forms)
    if is_faster(times[INT8], plain):
        everything = ()
    if everything:
        forms = [*forms, *everything]
        plain, times = bench.timed(forms)
    if any(seems_faster(times[form.name], times[INT8]) for form in forms[1:]):
        tell(1, 2, "measures again, since noise hides which form is faster")
        plain, times = bench.timed(forms, LONGER)
    tell(1, 2, "writes and measures the forms")
    better = [form for form in families if is_faster(times[form.name], times[INT8])]
    if len(better) > 1:
        together = better[0]
        for form in better[1:]:
            together = together.joined(form)
        forms = [whole, *better, together, *everything]
        plain, times = bench.timed(forms)
    best = whole
    for form in forms[1:]:
        if is_faster(times[form.name], times[best.name]):
            best = form
    return ChosenForm(
        form=best.name,
        options=best.options,
        floats=best.floats,
        batch_size=bench.batch_size,
        timings=tuple(_told(form, plain, times[form.name]) for form in forms),
    )


def is_faster(one: Times, other: Times) -> bool:
    """Whether `one` is shown to be faster than `other`, beside which it was measured."""
    return other.ratio_to(one, confidence=CONFIDENCE).verdict == "faster"


def seems_faster(one: Times, other: Times) -> bool:
    """Whether `one` has a smaller median, but is not shown to be faster."""
    return other.ratio_to(one).value >= SEEMS and not is_faster(one, other)


def _told(form: Form, plain: Times, own: Times) -> TimedForm:
    ratio = plain.ratio_to(own, confidence=CONFIDENCE)
    return TimedForm(
        name=form.name, floats=len(form.floats), milliseconds=1e3 * own.quantile(0.5).value, speedup=ratio.value,
        low=ratio.low, high=ratio.high,
    )  # fmt: skip
