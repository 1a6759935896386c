"""Workload `in-hand`: models and data that Python code passes to `kdq.quantize` or `kdq.compress`.

What: `kdq` writes each object to a file named by its sha256, below the site's home; the stages, which run in other
    processes, read it there. The file has classes by name, or with their code if they come from a script or a notebook.
Formula: as in the workload `python`.
Source: cloudpickle, which also pickles functions and classes that are not in a module.
Defaults and where they come from: without a test split, a tenth of the samples is held out for it.
Costs: a data set in memory is written once.
Limits: recipes do not name this workload themselves. A class from a script is pickled with its code; another session
    pickles it differently, and KDQ then computes the stages anew.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kdq_core.api import Batch, Field, Outputs, RecipeError, StageError, user_module
from kdq_workloads.arrays import digest
from kdq_workloads.losses import LOSSES
from kdq_workloads.python import Python
from kdq_workloads.samples import Samples
from kdq_workloads.sources import samples_of
from kdq_workloads.splits import WHOLE

if TYPE_CHECKING:
    from torch import Tensor, nn


class InHand(Python):
    """Models and data that Python code passes to `kdq`."""

    student_options: ClassVar[frozenset[str]] = frozenset({"model"})

    folder: str = Field(min_length=1, description="the folder with the files")
    model: str = Field(description="name of the file with the model")
    teacher_model: str | None = Field(default=None, alias="teacher", description="the same for the teacher")
    loss_name: str = Field(default="auto", alias="loss", description="name of a loss, or of the file with a function")
    data: str = Field(default="", description="unused; `parts` has the data")
    parts: tuple[tuple[str, str], ...] = Field(description="splits, each with the name of its file")
    code: tuple[str, ...] = Field(default=(), description="files with the code of classes and functions")

    def runs(self) -> tuple[str, ...]:
        """The code of the classes."""
        return self.code

    def fingerprint(self) -> str:
        """The names of the files, which are hashes of their content."""
        return hashlib.sha256(repr([sorted(self.parts), self.split_text()]).encode()).hexdigest()

    def student(self) -> nn.Module:
        """Read the model."""
        from kdq_workloads.plain import plain

        return plain(copy.deepcopy(self.read(self.model)), self.data_names())

    def teacher(self) -> nn.Module:
        """Read the teacher."""
        if self.teacher_model is None:
            raise RecipeError("no teacher was passed; give `teacher=` a torch.nn.Module")
        from kdq_workloads.plain import plain

        return plain(copy.deepcopy(self.read(self.teacher_model)), self.data_names())

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The mean loss."""
        if self.loss_name in LOSSES:
            return super().loss(outputs, batch)
        if batch.targets is None:
            raise StageError("the loss needs labels, and this batch has none; give the data labels")
        given: Tensor = self.read(self.loss_name)(outputs.logits, batch.targets)
        return given

    def given(self) -> Mapping[str, Samples]:
        """The data by split."""
        return _given(self)

    def data_names(self) -> tuple[str, ...]:
        """The names, if the data gives dicts."""
        given = _given(self)
        return tuple(getattr(given.get("train") or given[WHOLE], "names", ()))

    def read(self, name: str) -> Any:
        """Read an object.

        Raises:
            StageError: its file is missing, or has another content than its name says.
        """
        for one in self.code:
            user_module(one)
        return _read(Path(self.folder) / f"{name}.pkl")


@functools.lru_cache(maxsize=4)
def _given(workload: InHand) -> dict[str, Samples]:
    return {
        split: samples_of(workload.read(name), None, workload.limit, f"the data of {split!r}")
        for split, name in workload.parts
    }


@functools.lru_cache(maxsize=8)
def _read(path: Path) -> Any:
    if not path.is_file() or digest(path) != path.stem:
        raise StageError(
            f"the file {str(path)!r} of a model or of data is missing or damaged; call kdq again: it writes it anew"
        )
    with path.open("rb") as file:
        return pickle.load(file)  # noqa: S301 - this site wrote it, and its name is the hash of its content
