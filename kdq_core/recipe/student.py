"""The recipe's section on the student that a run begins with. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from kdq_core.frozen import Frozen


class StudentSpec(Frozen):
    """The student: by default the workload's, untrained; or one that is trained already."""

    source: Literal["workload", "checkpoint"] = Field(
        default="workload",
        description="workload: a new student, for `distill` to train; checkpoint: weights in a safetensors file, which "
        "every stage after that stands on",
    )
    file: str | None = Field(default=None, min_length=1, description="the safetensors file of a checkpoint")
    factory: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="`module:function` that makes the student's module; none: the workload's student",
    )

    @model_validator(mode="after")
    def _file_where_one_is_read(self) -> StudentSpec:
        if self.source == "checkpoint" and self.file is None:
            raise ValueError("a student from 'checkpoint' needs a 'file'")
        if self.source == "workload" and self.file is not None:
            raise ValueError("a student from 'workload' reads no 'file'; write source: checkpoint")
        return self
