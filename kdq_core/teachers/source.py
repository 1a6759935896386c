"""Gives the teacher's outputs while a student trains: from the model itself, or from its kept outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from kdq_core.errors import StageError, listing
from kdq_core.recipe.spec import STUDENTS
from kdq_core.store.records import TeacherOutputs
from kdq_core.store.store import Entry
from kdq_core.teachers.encoding import FEATURES, decode_feature, decode_outputs
from kdq_core.teachers.rows import Rows
from kdq_core.tensors import Batch, Outputs
from kdq_core.training.layout import channels_last
from kdq_core.training.losses import outputs_of
from kdq_core.training.taps import tapping


class TeacherSource(Protocol):
    """Gives the teacher's outputs for a batch, without gradients."""

    def __call__(self, batch: Batch, paths: Sequence[str] = ()) -> Outputs:
        """Give the outputs on the device of the batch's inputs; `features` has the teacher's modules at `paths`."""


class OnlineTeacher:
    """A teacher that runs anew for every batch, in eval mode without gradients.

    Attributes:
        model: the teacher, on the device of the fit.
        inputs: names of the inputs it reads (see `reading`); empty to read the student's inputs.
        half: whether to run it in bf16 (autocast), for devices that support it.
    """

    def __init__(self, model: nn.Module, *, inputs: Sequence[str] = (), half: bool = False) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.inputs = tuple(inputs)
        self.half = half
        self._layout_chosen = False

    def __call__(self, batch: Batch, paths: Sequence[str] = ()) -> Outputs:
        """Give outputs, and features of the modules at `paths`, in float32."""
        device = batch.inputs[0].device.type
        read = reading(batch, self.inputs)
        if not self._layout_chosen:
            self._layout_chosen = True
            channels_last(self.model, read.inputs)
        half = torch.autocast(device, torch.bfloat16, enabled=self.half)
        with torch.no_grad(), half, tapping(self.model, paths, "teacher") as seen:
            outputs = outputs_of(self.model, read)
        return in_float32(replace(outputs, features=seen))


class CachedTeacher:
    """The kept outputs of a teacher, read from the rows of a store entry.

    Attributes:
        record: describes what is kept: views, samples, form.
    """

    def __init__(self, entry: Entry, *, teacher: str, data: str, fuse: bool = False) -> None:
        """Open the entry.

        Args:
            entry: the entry of a stage that keeps teacher outputs.
            teacher: digest of the teacher the student is to learn from.
            data: fingerprint of the student's data.
            fuse: give the mean of the logits over all kept views, whichever view a batch has.

        Raises:
            StageError: the entry holds outputs of another teacher or of other data.
        """
        assert isinstance(entry.record, TeacherOutputs)
        self.record = record = entry.record
        self._folder, self._fuse = entry.folder, fuse
        for what, asked, kept in (("teacher", teacher, record.teacher), ("data", data, record.data)):
            if asked != kept:
                raise StageError(
                    f"the kept teacher outputs in {str(entry.folder)!r} are of the {what} {kept[:12]}, but the student "
                    f"learns from the {what} {asked[:12]}; delete that folder and run again: they are computed anew"
                )
        count = record.views * record.samples
        self._rows = {tensor.name: Rows(entry.file(tensor.path), tensor, count) for tensor in record.tensors}

    def __call__(self, batch: Batch, paths: Sequence[str] = ()) -> Outputs:
        """Give outputs, and features of the modules at `paths`, in float32.

        Raises:
            StageError: a sample, the view or a module's features were not kept.
        """
        ids = batch.ids.cpu().numpy()
        outside = ids[(ids < 0) | (ids >= self.record.samples)]
        if len(outside):
            raise StageError(
                f"there is no kept teacher output for sample {outside[0]}: the samples are 0 to "
                f"{self.record.samples - 1}; the workload must number its training samples the same way in each pass"
            )
        if not 0 <= batch.view < self.record.views:
            raise StageError(
                f"there is no kept teacher output for view {batch.view}: the views are 0 to {self.record.views - 1}; "
                "keep more, or train on those in turn"
            )
        at, device = batch.view * self.record.samples + ids, batch.inputs[0].device
        features = {path: decode_feature(self._features(path).read(at), device) for path in paths}
        if not self._fuse:
            return replace(self._logits(at, device), features=features)
        said = [self._logits(view * self.record.samples + ids, device) for view in range(self.record.views)]
        logits = torch.stack([one.logits for one in said]).mean(0)
        tasks = {name: torch.stack([one.tasks[name] for one in said]).mean(0) for name in said[0].tasks}
        return Outputs(logits, features, tasks)

    def _logits(self, at: np.ndarray, device: torch.device) -> Outputs:
        read = {name: rows.read(at) for name, rows in self._rows.items() if not name.startswith(FEATURES)}
        return decode_outputs(read, self.record.classes, self.record.tasks, device)

    def _features(self, path: str) -> Rows:
        rows = self._rows.get(f"{FEATURES}{path}")
        if rows is None:
            kept = [name.removeprefix(FEATURES) for name in self._rows if name.startswith(FEATURES)]
            raise StageError(
                f"the student is to be compared with the teacher's {path!r}, but the kept teacher outputs in "
                f"{str(self._folder)!r} have features of: {listing(kept)}; delete that folder and run again: they are "
                "computed anew"
            )
        return rows


def reading(batch: Batch, names: Sequence[str]) -> Batch:
    """Give the batch with the inputs that a teacher reads.

    Args:
        batch: with the student's inputs, and extra inputs.
        names: names of extra inputs that replace the student's; `STUDENTS` among them stands for all of the student's
            inputs. Empty to leave the batch as it is.

    Raises:
        StageError: the workload gives no such input.
    """
    if not names:
        return batch
    missing = [name for name in names if name != STUDENTS and name not in batch.extra]
    if missing:
        there = listing(batch.extra) if batch.extra else "no extra inputs"
        raise StageError(
            f"the teacher reads the input {missing[0]!r} ('teacher.inputs'), but the workload's batches have {there}; "
            "put it into `Batch.extra`, or correct the name"
        )
    parts = (batch.inputs if name == STUDENTS else (batch.extra[name],) for name in names)
    return replace(batch, inputs=tuple(x for part in parts for x in part))


def in_float32(outputs: Outputs) -> Outputs:
    """Convert the outputs to float32."""
    features, tasks = ({k: v.float() for k, v in part.items()} for part in (outputs.features, outputs.tasks))
    return Outputs(outputs.logits.float(), features, tasks)


def half_precision(device: torch.device) -> bool:
    """Tell whether a teacher runs in bf16 on this device by default: on a GPU that supports it, never on a CPU.

    A CPU's instruction set must not decide what a student learns. `kdq plan` says if bf16 would be faster.
    """
    return device.type == "cuda" and bool(torch.cuda.is_bf16_supported(including_emulation=False))
