"""Teachers as one module: members from several places, and how their answers become one.

What: the logits of M members are combined for each sample, so that whoever asks sees one teacher.
Formula: `mean`: z = sum_i w_i z_i / sum_i w_i, the geometric mean of their probabilities. `confidence`: the same with
    w_i exp(-H_i) in place of w_i, where H_i is the entropy of member i's softmax for that sample.
Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (means of an ensemble); Kwon et al. 2020,
    "Adaptive Knowledge Distillation Based on Entropy" (weights that fall with the entropy; exp(-H) is our choice).
Limits: all members give logits of one shape; entropy has a meaning for classes alone. Where they have several tasks,
    each task is combined for itself, over the members that have it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdq_core.errors import StageError, listing
from kdq_core.plugins.kinds import Workload
from kdq_core.recipe.spec import STUDENTS, TeacherSpec
from kdq_core.recipe.teacher import MemberSpec, NormalizeSpec
from kdq_core.teachers.checkpoint import load_checkpoint
from kdq_core.teachers.factory import made_by
from kdq_core.teachers.onnx_teacher import OnnxTeacher


class Ensemble(nn.Module):
    """Several teachers as one."""

    def __init__(self, members: list[nn.Module], weights: list[float], combine: str) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.combine = combine
        self.register_buffer("weights", torch.tensor(weights), persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Combined logits `[B, ..., C]`, by task where the members have tasks.

        Raises:
            StageError: some have tasks and others have none, the shapes of their logits differ, or their confidence is
                asked for where there are no classes.
        """
        given = [member(*inputs) for member in self.members]
        tasks = [tuple(answer) if isinstance(answer, Mapping) else () for answer in given]
        odd = next((i for i, names in enumerate(tasks) if bool(names) != bool(tasks[0])), None)
        if odd is not None:
            said = [f"the tasks {listing(names)}" if names else "one output without a name" for names in tasks]
            raise StageError(
                f"teacher 1 gives {said[0]}, teacher {odd + 1} {said[odd]}; let all members of 'teacher.members' name "
                "their outputs, or none"
            )
        everyone = range(len(given))
        if not tasks[0]:
            return self._combined(given, everyone, "the teachers give")
        sure = {name: [i for i in everyone if name in tasks[i]] for name in dict.fromkeys(itertools.chain(*tasks))}
        return {
            name: self._combined([given[i][name] for i in who], who, f"the task {name!r} has")
            for name, who in sure.items()
        }

    def _combined(self, answers: list[Tensor], who: Sequence[int], told: str) -> Tensor:
        shapes = [tuple(answer.shape) for answer in answers]
        odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
        if odd is not None:
            raise StageError(
                f"teacher {who[0] + 1} gives logits of shape {shapes[0]}, teacher {who[odd] + 1} of shape "
                f"{shapes[odd]}; all members of 'teacher.members' must have the same classes"
            )
        if self.combine == "confidence" and (answers[0].ndim < 2 or answers[0].shape[-1] == 1):
            raise StageError(
                f"'combine: confidence' in 'teacher' asks how sure each teacher is of its class, but {told} outputs "
                f"of shape {shapes[0]}, numbers without classes; use combine: mean"
            )
        logits = torch.stack(answers)
        weights = cast("Tensor", self.weights)[list(who)].to(logits).reshape(-1, *[1] * answers[0].ndim)
        if self.combine == "confidence":
            logs = logits.log_softmax(-1)
            weights = weights * (logs.exp() * logs).sum(-1, keepdim=True).exp()
        return (weights * logits).sum(0) / weights.sum(0)


class Reads(nn.Module):
    """A teacher that reads some of the inputs that all members read together."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], given: tuple[str, ...]) -> None:
        """Read `inputs` of `given`, names as of `TeacherSpec.reads`."""
        super().__init__()
        self.model, self.inputs, self.given = model, inputs, given

    def forward(self, *inputs: Tensor) -> Any:
        """What the model gives for its own."""
        own = len(inputs) - len(self.given) + 1  # how many are the student's, where those are among them
        at, parts = 0, {}
        for name in self.given:
            parts[name] = inputs[at : at + (own if name == STUDENTS else 1)]
            at += len(parts[name])
        return self.model(*(x for name in self.inputs for x in parts[name]))


class Normalized(nn.Module):
    """A teacher with a normalisation of its own."""

    def __init__(self, model: nn.Module, spec: NormalizeSpec) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std), persistent=False)

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """What the model gives for `(first - mean) / std`, along axis 1; in float32 where `first` holds integers.

        Raises:
            StageError: there is neither one mean nor one a channel.
        """
        mean, std = cast("Tensor", self.mean), cast("Tensor", self.std)
        if len(mean) > 1:
            if first.ndim < 2 or first.shape[1] != len(mean):
                has = f"{first.shape[1]} along axis 1" if first.ndim > 1 else "no axis 1"
                raise StageError(
                    f"'normalize' in 'teacher.members' has {len(mean)} means, but the teacher's first input has {has} "
                    f"(shape {tuple(first.shape)}); give one mean and one std, or as many as there are channels"
                )
            mean, std = (x.reshape(1, -1, *[1] * (first.ndim - 2)) for x in (mean, std))
        first = first if first.is_floating_point() else first.float()
        return cast("Tensor", self.model((first - mean.to(first)) / std.to(first), *others))


def whole(spec: TeacherSpec, members: list[nn.Module]) -> nn.Module:
    """The members as the one teacher of a recipe."""
    pairs = zip(members, spec.members, strict=True)
    wrapped = [Normalized(m, s.normalize) if s.normalize else m for m, s in pairs]
    for index, own in enumerate(map(spec.read_by, spec.members)):
        if own != (spec.reads or (STUDENTS,)):
            wrapped[index] = Reads(wrapped[index], own, spec.reads)
    if len(wrapped) == 1:
        return wrapped[0]
    return Ensemble(wrapped, [member.weight for member in spec.members], spec.combine)


def empty_member(spec: MemberSpec, workload: Workload) -> nn.Module:
    """A member's module before its weights are loaded or trained."""
    if spec.source == "onnx":
        return OnnxTeacher(tasks=spec.tasks, file=spec.file or "")
    if spec.source == "student":
        return workload.student()
    return made_by(spec.factory) if spec.factory else workload.teacher()


def read_member(spec: MemberSpec, workload: Workload) -> nn.Module:
    """A member whose weights are in a file.

    Raises:
        StageError: the file is missing, no such file, does not fit the module, or takes one size of batch alone.
    """
    assert spec.file is not None
    path = Path(spec.file)
    if not path.is_file():
        raise StageError(f"the teacher's file {spec.file!r} is not there; check 'file' in 'teacher.members'")
    if spec.source == "onnx":
        teacher = OnnxTeacher(path.read_bytes(), spec.tasks, spec.file)
        teacher.check()
        return teacher
    model = empty_member(spec, workload)
    load_checkpoint(model, path, spec.factory or "the workload's teacher()")
    return model
