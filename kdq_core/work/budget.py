"""The schedule that `distill` and `quantize` share: what each of them trains of it, and the weights in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from kdq_core.plugins.budget import SharedSchedule, shared_schedule
from kdq_core.recipe.spec import FitSpec
from kdq_core.store.records import Checkpoint, Kept
from kdq_core.training.resume import tensors_of
from kdq_core.work.shown import request_of

if TYPE_CHECKING:
    from torch import nn

    from kdq_core.work.work import StageWork

KEPT = "kept.safetensors"


def shared(work: StageWork) -> SharedSchedule | None:
    """The shared schedule of a stage; its key holds it, because `reads()` does."""
    return shared_schedule(request_of(work))


def whole_fit(work: StageWork, own: FitSpec) -> FitSpec:
    """The fit of the whole schedule: the section's own, or that of `distill` with the epochs of the shared one."""
    schedule = shared(work)
    if schedule is None:
        return own
    return request_of(work).recipe.distill.fit.model_copy(update={"epochs": schedule.epochs})


def keeping(work: StageWork, student: nn.Module, *, main: bool) -> Callable[[int, int], None]:
    """A hook for before a step: at the first step of the tail, the `main` process writes the weights to scratch."""
    schedule = shared(work)

    def keep(done: int, total: int) -> None:
        begins = schedule is not None and done * schedule.epochs == schedule.kept * total
        if main and begins and schedule and schedule.tail and not schedule.stops:
            draft = work.scratch / f"{KEPT}.new"
            save_file(tensors_of(student), draft)
            draft.replace(work.scratch / KEPT)

    return keep


def kept(work: StageWork) -> Kept | None:
    """Move what `keeping` wrote to the draft, and describe it."""
    schedule, file = shared(work), work.scratch / KEPT
    if schedule is None or not file.is_file():
        return None
    (work.draft / KEPT).write_bytes(file.read_bytes())
    return Kept(weights=KEPT, epoch=schedule.kept)


def go_back(work: StageWork, student: nn.Module) -> None:
    """Load into the float student of the input `student` the weights it had before the tail, if it trained that too."""
    record = work.record("student", Checkpoint)
    if shared(work) and work.quantizer.trains and record.before_tail:
        student.load_state_dict(load_file(work.input("student").file(record.before_tail.weights)))
