"""A teacher that reads other fields of a batch than the student: another modality."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdq_core.errors import StageError
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Kind, Plugin
from kdq_core.recipe.spec import TeacherSpec
from kdq_core.store.records import Artifact, Checkpoint
from kdq_core.teachers.members import whole
from kdq_core.teachers.source import OnlineTeacher, reading
from kdq_core.tensors import Batch
from kdq_workloads.digits import Digits

BATCH = Batch((torch.zeros(2, 1),), None, torch.arange(2), extra={"sound": torch.ones(2, 3), "text": torch.ones(2, 1)})


class Digital(Digits):
    """Digits with the row sums of the image as a second modality, which the teacher reads."""

    def teacher(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 10))

    def batches(self, split: Any, **asked: Any) -> Iterator[Batch]:
        for batch in super().batches(split, **asked):
            yield replace(batch, extra={"rows": batch.inputs[0].sum(3)[:, 0]})


class Installed(Catalog):
    """The catalog, with the workload above in place of `digits`."""

    def build(self, kind: Kind, name: str, options: Any = None, **where: Any) -> Plugin:
        return Digital(**options) if kind == "workload" else super().build(kind, name, options, **where)


def test_the_named_inputs_are_read_in_their_order() -> None:
    assert reading(BATCH, ()) is BATCH
    assert [x.shape[1] for x in reading(BATCH, ("text", "sound")).inputs] == [1, 3]
    assert OnlineTeacher(nn.Linear(3, 5), inputs=("sound",))(BATCH).logits.shape == (2, 5)


def test_an_input_that_the_workload_does_not_give_is_named() -> None:
    with pytest.raises(StageError) as caught:
        reading(BATCH, ("smell",))
    assert str(caught.value) == (
        "the teacher reads the input 'smell' ('teacher.inputs'), but the workload's batches have sound, text; "
        "put it into `Batch.extra`, or correct the name"
    )
    with pytest.raises(StageError, match="but the workload's batches have no extra inputs; put it into"):
        reading(replace(BATCH, extra={}), ("smell",))


@pytest.mark.parametrize("enabled", [True, pytest.param(False, marks=pytest.mark.rare)])
def test_the_student_of_one_modality_learns_from_the_teacher_of_another(
    stages_of: Any, tmp_path: Path, enabled: bool
) -> None:
    loaded = Catalog.load()
    run = stages_of(
        tmp_path,
        Installed(loaded.plugins, loaded.quarantined),
        workload={"use": "digits", "options": {"student_width": 16}},
        teacher={"fit": {"epochs": 1}, "inputs": ["rows"], "cache": {"views": 1, "enabled": enabled}},
        distill={"fit": {"epochs": 1}},
        quantize={"use": "minmax-qat", "fit": {"epochs": 1}},
    )
    for node in run.plan.nodes[:-2]:
        run.stage(node.name)
    for name in ("train_teacher", "distill"):
        record = run.entries[name].record
        assert isinstance(record, Checkpoint)
        assert record.history[-1].values["validation/loss"] < 2.4
    artifact = run.entries["export"].record
    assert isinstance(artifact, Artifact)
    assert sorted(artifact.baselines) == ["student"]


class Hears(nn.Module):
    """Answers with what it reads: `[B, 1]` and `[B, 3]`, or one of them."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([*inputs, torch.zeros(len(inputs[0]), 4 - sum(x.shape[1] for x in inputs))], 1)


def test_teachers_of_several_modalities_teach_together() -> None:
    members = [{"weight": 1}, {"inputs": ["sound"]}, {"inputs": ["text", "sound"], "weight": 2}]
    spec = TeacherSpec.model_validate({"members": members})
    assert spec.reads == ("", "sound", "text")
    batch = replace(BATCH, inputs=(torch.full((2, 1), 8.0),))
    said = OnlineTeacher(whole(spec, [Hears(), Hears(), Hears()]), inputs=spec.reads)(batch).logits
    image, sound, both = [8.0, 0, 0, 0], [1.0, 1, 1, 0], [1.0, 1, 1, 1]
    assert said[0].tolist() == [(a + b + 2 * c) / 4 for a, b, c in zip(image, sound, both, strict=True)]
    assert TeacherSpec().reads == ()
    assert TeacherSpec.model_validate({"inputs": ["sound"], "members": [{}, {}]}).reads == ("sound",)


def test_each_member_is_trained_on_what_it_reads(stages_of: Any, tmp_path: Path) -> None:
    loaded = Catalog.load()
    members = [{"source": "student"}, {"inputs": ["rows"]}]
    run = stages_of(
        tmp_path,
        Installed(loaded.plugins, loaded.quarantined),
        workload={"use": "digits", "options": {"student_width": 16}},
        teacher={"fit": {"epochs": 1}, "members": members, "cache": {"views": 1}},
        distill={"fit": {"epochs": 1}},
    )
    for name in ("train_teacher", "cache_teacher", "distill"):
        run.stage(name)
    history = run.entries["train_teacher"].record.history
    assert [set(record.values) & {"train/loss", "2/train/loss"} for record in history] == [
        {"train/loss"},
        {"2/train/loss"},
    ]
