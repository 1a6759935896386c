"""Makes the models of a recipe untrained, and takes the student through to the file on two samples."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdq_core.errors import KdqError, StageError
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert
from kdq_core.quantization.prepare import set_phase
from kdq_core.teachers.source import reading
from kdq_core.training.finite import odd_samples, why_odd
from kdq_core.training.losses import check_names, loss_of
from kdq_core.work.answering import answer, in_short, left_out
from kdq_core.work.checking import check_all, check_works
from kdq_core.work.data import EVALUATION_BATCH, two_samples
from kdq_core.work.quantized import placement, prepared
from kdq_flows.facts.coverage import facts_of, float_lines
from kdq_flows.facts.result import input_line
from kdq_flows.preflight import data

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule

    from kdq_core.plugins.asked import Asked
    from kdq_core.plugins.wiring import Wired
    from kdq_core.tensors import Batch, Outputs
    from kdq_core.work.checking import CheckWork

CALIBRATION = 2
"""Batches that give the ranges of the file that is tried."""


class Rehearsal:
    """The checks of data and models, in the order in which one needs the other.

    Attributes:
        float_lines: what the runtime leaves in float, and why; known after the check `export`.
    """

    def __init__(self, asked: Asked, wired: tuple[Wired, ...], scratch: Path) -> None:
        self.float_lines: list[str] = []
        self._asked, self._wired, self._scratch = asked, wired, scratch
        self._works = check_works(wired, asked, scratch, lambda _event: None)
        self._splits: dict[str, data.Read] = {}

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Yield name and function of each check that this recipe has work for."""
        yield "data", self.data
        yield "models", self.models
        yield "forward", self.forward
        yield "loss", self.loss
        if self.quantizes:
            yield "trace", self.trace
            yield "quantizers", self.quantizers
        yield "stages", self.stages
        if self.quantizes and self._giving("artifact"):
            yield "export", self.export

    @property
    def quantizes(self) -> bool:
        """Whether the recipe quantizes a student."""
        return self._giving("quantized") is not None and self._giving("student") is not None

    def data(self) -> str:
        """Read the splits."""
        self._splits = data.read(self._asked.workload)
        return data.told(self._splits)

    def models(self) -> str:
        """Make the models."""
        return ", ".join(f"{role} with {_parameters(model):,} parameters" for role, model in self._models.items())

    def forward(self) -> str:
        """Let each model answer for two samples."""
        batch, words = two_samples(self._asked.workload), []
        for role, model in self._models.items():
            outputs = answer(role, model, self._read_by(role, batch))
            check_names(outputs, batch)
            logits = outputs.tasks or {"": outputs.logits}
            for one in logits.values():
                if one.ndim < 2 or len(one) != len(batch.ids):
                    raise StageError(
                        f"the {role} gives a tensor of shape {tuple(one.shape)} for {len(batch.ids)} samples; let it "
                        "give logits of shape (samples, classes), or (samples, 1) for a number"
                    )
            shapes = ", ".join(f"{n} {list(x.shape[1:])}".strip() for n, x in logits.items())
            words.append(f"{role} gives {shapes}{left_out(model.eval(), self._read_by(role, batch))}")
        return "; ".join(words)

    def loss(self) -> str:
        """Compute the hard loss on the first samples, and on those with the least and the greatest class."""
        role, model = list(self._models.items())[-1]
        found = [self._loss(role, model, split, batch) for split, batch in data.probes(self._splits)]
        values = [value for value in found if value is not None]
        return f"finite, {values[0]:.3g} for the {role} as it starts" if values else "the data has no labels"

    def _loss(self, role: str, model: nn.Module, split: str, batch: Batch) -> float | None:
        outputs = answer(role, model, self._read_by(role, batch))
        odd = odd_samples(outputs, batch)
        if odd:
            raise StageError(why_odd(f"the {role} as it starts", odd, split, len(batch.ids)))
        if not batch.labelled:
            return None
        try:
            value = float(loss_of(self._asked.workload, outputs, batch))
        except KdqError:
            raise
        except Exception as error:
            raise StageError(f"the loss of the {role} fails: {in_short(error)}; {_mismatch(outputs, batch)}") from error
        if value != value or abs(value) == float("inf"):
            raise StageError(
                f"the loss of the {role} as it starts is {value}; look for NaN in the data, and for a division by "
                "zero or a logarithm of zero in model and loss"
            )
        return value

    def trace(self) -> str:
        """Capture the student as a graph."""
        return f"the student is a graph of {sum(node.op.startswith('call') for node in self._graph.graph.nodes)} calls"

    def quantizers(self) -> str:
        """Place the quantizers."""
        places = placement(self._quantizing, self._graph).places
        weights = sum(place.role == "weight" for place in places)
        recipe = self._asked.recipe
        return f"{recipe.quantize.use!r} for {weights} weights and {len(places) - weights} activations"

    def stages(self) -> str:
        """Run the check of each stage, as a run does before its first fit."""
        titles = [one.title for one in self._wired]
        check_all(self._wired, self._asked, self._scratch, lambda _event: None, titles=titles)
        return f"all {len(titles)} accept the recipe, the data and the models"

    @torch.no_grad()
    def export(self) -> str:
        """Quantize the untrained student with ranges of some batches, export it, and run the file."""
        work, target = self._quantizing, self._asked.target
        example = two_samples(self._asked.workload).inputs
        model = prepared(work, self._graph).eval()
        set_phase(model, observe=True, quantize=False, freeze_batch_norm=True)
        for batch in itertools.islice(self._asked.workload.batches("train", batch_size=EVALUATION_BATCH), CALIBRATION):
            model(*batch.inputs)
        set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
        file = self._scratch / "int8.onnx"
        target.export(convert(model), example, file)
        target.session(file, threads=self._asked.site.threads).run(tuple(x.numpy() for x in example))
        rows = target.coverage(file, self._graph, keep_float=placement(work, self._graph).keep_float)
        self.float_lines = float_lines(facts_of(rows), every=True)
        int8 = sum(row.int8 for row in rows)
        size, use = file.stat().st_size, self._asked.recipe.target.use
        takes = ", ".join(map(input_line, target.signature(file)[0]))
        return f"takes {takes}; {size:,} bytes for {use!r}; {int8} of {len(rows)} operators in int8"

    @functools.cached_property
    def _models(self) -> dict[str, nn.Module]:
        """The teacher and the student that the recipe has, untrained, in eval mode."""
        found = {}
        for role in ("teacher", "student"):
            work = self._giving(role)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = work.untrained() if work else None
            if model is not None:
                found[role] = model.eval()
        if not found:
            raise StageError("no stage of the recipe gives a teacher or a student; list 'train_teacher' or 'distill'")
        return found

    @functools.cached_property
    def _graph(self) -> GraphModule:
        return capture(self._models["student"], two_samples(self._asked.workload).inputs)

    @property
    def _quantizing(self) -> CheckWork:
        work = self._giving("quantized")
        assert work is not None
        return work

    def _giving(self, slot: str) -> CheckWork | None:
        """The last stage that gives a slot."""
        return next((w for w in reversed(self._works.values()) if w.wired.stage.gives == slot), None)

    def _read_by(self, role: str, batch: Batch) -> Batch:
        return reading(batch, self._asked.recipe.teacher.reads) if role == "teacher" else batch


def _mismatch(outputs: Outputs, batch: Batch) -> str:
    """What to do about a loss that fails."""
    targets, logits = batch.targets, outputs.logits
    shapes = tuple(logits.shape), None if targets is None else tuple(targets.shape)
    return f"the model gave {shapes[0]}, and the labels are {shapes[1]}; correct one of them, or name another loss"


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
