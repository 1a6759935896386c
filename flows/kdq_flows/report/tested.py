"""The files of a kept run on its test split, for `kdq explain`: by class, by slice, and with the proposed rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdq_core.errors import RecipeError
from kdq_core.plan.view import RunView
from kdq_core.plugins.kinds import Subject
from kdq_core.quantization.capture import capture
from kdq_core.quantization.prepare import set_phase
from kdq_core.tensors import Batch
from kdq_core.work.data import EVALUATION_BATCH, checked
from kdq_core.work.effects import Explained, Files, Patched
from kdq_core.work.explaining import Places, classes_of, first_output, places_with
from kdq_core.work.parts import columns_of, files_of
from kdq_core.work.patching import measured, patched, with_rules, write
from kdq_core.work.work import StageWork

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import GraphModule


@dataclass(frozen=True)
class Tested:
    """The test split, as the float file and the int8 file answer it.

    Attributes:
        work: of the stage that measured the files.
        files: the files by model, `student` and `int8`.
        outputs: their first outputs, `[N, ...]`.
        truth: classes `[N]`, below 0 where a sample has none; `None` if the labels are no classes.
        columns: further values of the samples by name, each `[N]`.
    """

    work: StageWork
    files: Mapping[str, Path]
    outputs: Mapping[str, np.ndarray]
    truth: np.ndarray | None
    columns: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, work: StageWork, view: RunView, slices: Sequence[str]) -> Tested:
        """Read the test split, and run the files over it where the run kept no predictions.

        Raises:
            RecipeError: the data have no such column, or slices are asked for and the labels are no classes.
        """
        files = {model: path for model in ("student", "int8") if (path := view.file(model)) is not None}
        samples = work.workload.samples("test")
        columns = columns_of(work.workload, "test", samples, slices)
        kept = {model: next(iter(view.predictions(model).values()), None) for model in files}
        outputs = {m: predicted(work, m, files[m]) if given is None else given for m, given in kept.items()}
        truth = [(classes_of(batch, outputs["int8"].shape), len(batch.ids)) for batch in _batches(work)]
        known = any(classes is not None for classes, _ in truth)
        if slices and not known:
            raise RecipeError(
                "--slice compares shares of right answers, and the labels of this workload are no classes; leave it out"
            )
        rows = [np.full(count, -1) if classes is None else classes for classes, count in truth]
        return cls(work, files, outputs, np.concatenate(rows) if known else None, columns)

    def places(self) -> Places:
        """Gives the places that get quantizers with further rules."""
        work, graph = self.work, capture(self.work.model("student"), self.work.example())
        return places_with(graph, work.target, work.quantizer, work.section("quantize"))

    def compared(self) -> Files | None:
        """The files by class and by slice; `None` without classes."""
        if self.truth is None:
            return None
        return files_of(self.outputs["student"], self.outputs["int8"], self.truth, self.columns)

    def flips(self, model: GraphModule, batches: Sequence[Batch]) -> int | None:
        """How many samples of `batches` the int8 file answers otherwise than the quantized student in torch."""
        if self.truth is None:
            return None
        set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
        given = predicted(self.work, "int8", self.files["int8"], batches).argmax(1)
        with torch.no_grad():
            ours = np.concatenate([first_output(model(*batch.inputs)).argmax(1).numpy() for batch in batches])
        return int((ours != given).sum())

    def patched(
        self,
        quantizing: StageWork,
        model: GraphModule,
        found: Explained,
        folder: Path,
        alone: Callable[[], AbstractContextManager[object]],
    ) -> Patched:
        """Write the file with the rules that were found, run it, and measure it beside the others.

        Args:
            quantizing: the work of the stage `quantize`.
            model: the quantized student of the run.
            found: with rules.
            folder: for the file.
            alone: keeps the home's machine free while times are measured.

        Raises:
            KdqError: the rules cannot be followed, such as those that leave no layer.
        """
        quantizing = replace(quantizing, way=self.work.chosen)
        work, path = with_rules(quantizing, found.rules), folder / "patched.onnx"
        write(work, patched(work, model), path)
        given = predicted(self.work, "int8", path)
        first = next(iter(_batches(self.work)))
        inputs = tuple(np.ascontiguousarray(x[:1].numpy()) for x in first.inputs)
        files = [path, self.files["int8"], self.files["student"]]
        with alone():
            return measured(self.work.target, files, [given, self.outputs["student"]], self.truth, inputs)


def predicted(work: StageWork, role: str, path: Path, batches: Iterable[Batch] | None = None) -> np.ndarray:
    """The first output of a file `[N, ...]`, for some batches or for the test split."""
    subject = Subject(role, path, work.target, work.site.threads)
    given: Any = subject.predict(lambda: _batches(work) if batches is None else batches)[0]
    return np.asarray(given)


def _batches(work: StageWork) -> Iterable[Batch]:
    return (checked(one, "test") for one in work.workload.batches("test", batch_size=EVALUATION_BATCH))
