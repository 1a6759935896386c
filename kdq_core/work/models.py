"""Models in slots: KDQ builds a module from the recipe, repeats the surgery of earlier stages, and loads weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from torch import nn

from kdq_core.errors import PluginError
from kdq_core.plugins.stage import Stage
from kdq_core.reading.given import given_file
from kdq_core.store.records import Checkpoint, EpochRecord, Surgery
from kdq_core.teachers.checkpoint import load_checkpoint
from kdq_core.teachers.factory import made_by
from kdq_core.teachers.members import empty_member, whole
from kdq_core.training.resume import tensors_of
from kdq_core.work.shown import Shown, request_of

STUDENT, TEACHER = "student", "teacher"


def loaded(work: Shown, port: str) -> nn.Module:
    """Build and load the model at an input of a stage, in eval mode, on the CPU.

    Raises:
        PluginError: the input holds a quantized student.
    """
    record = work.record(port, Checkpoint)
    if record.slot == "quantized":
        raise PluginError(
            f"stage {work.title!r} asks for the plain model at its input {port!r}, but a quantized student stands "
            "there; ask for work.quantized()"
        )
    model = _BUILDERS.get(work.ports[port].slot, new_student)(work)
    for surgery in record.surgery:
        stage = request_of(work).plugin("stage", surgery.use, surgery.options)
        assert isinstance(stage, Stage)
        model = stage.operate(model, surgery.steps)
    model.load_state_dict(load_file(work.input(port).file(record.weights)))
    return model.eval()


def new_student(work: Shown) -> nn.Module:
    """Make a new, untrained student: from the recipe's factory, or else the workload's."""
    factory = work.section("student").factory
    return made_by(factory, "student") if factory else work.workload.student()


def read_student(work: Shown) -> nn.Module:
    """Read the trained student that the recipe names as a checkpoint.

    Raises:
        RecipeError: the file does not exist.
        StageError: its weights do not fit the student.
    """
    spec = work.section("student")
    model = new_student(work)
    load_checkpoint(model, given_file(spec.file, "student"), spec.factory or "the workload's student()", "student")
    return model


def saved(
    work: Shown,
    model: nn.Module,
    history: tuple[EpochRecord, ...],
    *,
    of: type[Checkpoint],
    surgery: JsonValue,
    **fields: Any,
) -> Checkpoint:
    """Write the weights of `model` to the draft and describe them; see `kdq_core.plugins.stage.Work.checkpoint`."""
    wired = work.wired
    own = (
        () if surgery is None else (Surgery(use=wired.use, options=wired.stage.model_dump(mode="json"), steps=surgery),)
    )
    if wired.stage.gives == TEACHER and TEACHER in (before := _ports_by_slot(work)):
        fields.setdefault("answers", work.record(before[TEACHER], Checkpoint).answers)
    save_file(tensors_of(model), work.draft / "weights.safetensors")
    return of(
        slot=wired.stage.gives,
        weights="weights.safetensors",
        parameters=sum(p.numel() for p in model.parameters()),
        history=history,
        surgery=(*_surgery_before(work), *own),
        **fields,
    )


def _surgery_before(work: Shown) -> tuple[Surgery, ...]:
    """The surgery on the model that the stage changes: the model in the slot it gives anew, or else the student."""
    ports = _ports_by_slot(work)
    gives = work.wired.stage.gives
    port = ports.get(gives if gives in ports or gives in _BUILDERS else STUDENT)
    return () if port is None else work.record(port, Checkpoint).surgery


def _ports_by_slot(work: Shown) -> dict[str, str]:
    """The ports that have an input, by their slot."""
    return {port.slot: name for name, port in work.ports.items() if work.has(name)}


def _teacher(work: Shown) -> nn.Module:
    """The recipe's teachers as one module."""
    spec, workload = work.section("teacher"), work.workload
    return whole(spec, [empty_member(member, workload) for member in spec.members])


_BUILDERS: dict[str, Callable[[Shown], nn.Module]] = {"teacher": _teacher}
