"""Several teachers as one module: where its members come from, and how KDQ combines their logits.

What: the logits of M members are combined for each sample, so that the caller sees one teacher.
Formula: `mean`: z = sum_i w_i z_i / sum_i w_i, the geometric mean of their probabilities. `confidence`: the same with
    w_i exp(-H_i) in place of w_i, where H_i is the entropy of member i's softmax for that sample.
Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (means of an ensemble); Kwon et al. 2020,
    "Adaptive Knowledge Distillation Based on Entropy" (weights that fall with the entropy; exp(-H) is our choice).
Limits: all members must give logits of one shape; entropy needs classes. With several tasks, each task is combined on
    its own, over the members that have it.
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
        """Give the combined logits `[B, ..., C]`; a dict by task if the members have tasks.

        Raises:
            StageError: only some members have tasks, the shapes of their logits differ, or `confidence` is asked for
                without classes.
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
    """A teacher that reads only some of the inputs that the members read in all."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], given: tuple[str, ...]) -> None:
        """Wrap `model`, which reads `inputs` out of `given`; both are names as in `TeacherSpec.reads`."""
        super().__init__()
        self.model, self.inputs, self.given = model, inputs, given

    def forward(self, *inputs: Tensor) -> Any:
        """Call the model on its own inputs."""
        own = len(inputs) - len(self.given) + 1  # number of the student's inputs, if STUDENTS is in `given`
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
        """Call the model on `(first - mean) / std`, along axis 1; integers in `first` become float32.

        Raises:
            StageError: the number of means is neither 1 nor the number of channels.
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
    """Make the one teacher of a recipe from its members."""
    pairs = zip(members, spec.members, strict=True)
    wrapped = [Normalized(m, s.normalize) if s.normalize else m for m, s in pairs]
    for index, own in enumerate(map(spec.read_by, spec.members)):
        if own != (spec.reads or (STUDENTS,)):
            wrapped[index] = Reads(wrapped[index], own, spec.reads)
    if len(wrapped) == 1:
        return wrapped[0]
    return Ensemble(wrapped, [member.weight for member in spec.members], spec.combine)


def empty_member(spec: MemberSpec, workload: Workload) -> nn.Module:
    """Make a member's module, before its weights are loaded or trained."""
    if spec.source == "onnx":
        return OnnxTeacher(tasks=spec.tasks, file=spec.file or "")
    if spec.source == "student":
        return workload.student()
    return made_by(spec.factory) if spec.factory else workload.teacher()


def read_member(spec: MemberSpec, workload: Workload) -> nn.Module:
    """Make a member whose weights are in a file, and load them.

    Raises:
        StageError: the file is missing or of another format, does not fit the module, or takes only one batch size.
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
