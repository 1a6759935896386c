"""The workload kit and teachers that read other inputs than the student."""

from typing import Literal

import pytest
import torch

from kdq_core.api import Batch, Field, Workload
from kdq_core.testing import check_workload


class Sounds(Workload):
    """40 samples a split of 4 numbers for the student and 6 others, `sound`, for the teacher."""

    broken: Literal["", "student", "answer"] = Field(default="", description="what is wrong with it")

    def fingerprint(self):
        return "0" * 64

    def teacher(self):
        return torch.nn.Linear(6, 3)

    def student(self):
        if self.broken == "answer":
            return torch.nn.GRU(4, 3)
        return torch.nn.Linear(5 if self.broken else 4, 3)

    def batches(self, split, *, batch_size, seed=0, epoch=0, view=None):
        data = torch.Generator().manual_seed(len(split))
        x, sound = (torch.randn(40, size, generator=data) for size in (4, 6))
        order = torch.arange(40)
        if split == "train":
            order = torch.randperm(40, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for ids in order.split(batch_size):
            yield Batch((x[ids],), x[ids, :3].argmax(1), ids, {"sound": sound[ids]})

    def loss(self, outputs, batch):
        return torch.nn.functional.cross_entropy(outputs.logits, batch.targets)


def test_a_teacher_of_another_modality_keeps_the_promises_of_a_workload():
    check_workload(Sounds(), teacher_inputs=["sound"])


@pytest.mark.parametrize(
    ("workload", "names", "start", "end"),
    [
        (
            Sounds(),
            (),
            "the teacher should answer for the student's inputs, of shape (16, 4), but it raises RuntimeError(",
            "; where a recipe names others in 'teacher.inputs', give check_workload their names as 'teacher_inputs'",
        ),
        (
            Sounds(),
            ("", "sound"),
            "the teacher should answer for the student's inputs and 'sound', of shape (16, 4), (16, 6), but it raises "
            "TypeError(",
            "'teacher_inputs'",
        ),
        (
            Sounds(),
            ("smell",),
            "the teacher reads the input 'smell' ('teacher.inputs'), but the workload's batches have sound",
            "correct the name",
        ),
        (
            Sounds(broken="student"),
            ("sound",),
            "the student should answer for the student's inputs, of shape (16, 4), but it raises RuntimeError(",
            ")",
        ),
        (
            Sounds(broken="answer"),
            ("sound",),
            "the model gave 'tuple' where a tensor of logits is needed",
            "return the logits alone",
        ),
    ],
)
def test_a_model_that_does_not_fit_what_it_reads_is_told(workload, names, start, end):
    with pytest.raises(AssertionError) as caught:
        check_workload(workload, teacher_inputs=names)
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)
