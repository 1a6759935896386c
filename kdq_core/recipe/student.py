"""The recipe's section `student`: the student that a run starts with. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from kdq_core.frozen import Frozen

USER_CODE = r"^([A-Za-z_][\w.]*|.*[^/\\]\.py):[A-Za-z_]\w*$"
"""`module:name`, or `path/to/file.py:name`."""


class StudentSpec(Frozen):
    """The student: the workload's untrained one by default, or a trained one from a file."""

    source: Literal["workload", "checkpoint"] = Field(
        default="workload",
        description="workload: a new student, which `distill` trains; checkpoint: a trained student, whose weights KDQ "
        "reads from a safetensors file and passes to the first stage",
    )
    file: str | None = Field(default=None, min_length=1, description="the safetensors file of a checkpoint")
    factory: str | None = Field(
        default=None,
        pattern=USER_CODE,
        description="`module:function` or `file.py:function` that makes the student's module; null: the workload's "
        "student",
    )

    @model_validator(mode="after")
    def _file_where_one_is_read(self) -> StudentSpec:
        if self.source == "checkpoint" and self.file is None:
            raise ValueError("a student from 'checkpoint' needs a 'file'")
        if self.source == "workload" and self.file is not None:
            raise ValueError("a student from 'workload' reads no 'file'; write source: checkpoint")
        return self
