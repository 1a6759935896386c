"""House stages and the guest's pass the kit, and the kit sees each broken promise.

What: stages for the kit.
Defaults: none.
Limits: this docstring is the method card of the stages below.
"""

import random
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdq_core.api import Checkpoint, Field, FitSpec, Needs, Port, Reads, Record, Section, Stage, hard_loss
from kdq_core.errors import RecipeError
from kdq_core.plugins.catalog import Catalog
from kdq_core.testing import check_stage
from kdq_workloads.digits import Digits

FIT = {"epochs": 2, "batch_size": 256}
TINY: dict[str, Any] = {
    "workload": {"use": "digits", "options": {"teacher_width": 4, "student_width": 4, "augment": False}},
    "teacher": {"fit": FIT},
    "distill": {"fit": FIT},
    "quantize": {"use": "static", "calibration_batches": 2},
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe that begins with a student from a file, so that nothing is trained before the stage."""
    file = tmp_path_factory.mktemp("student") / "student.safetensors"
    with torch.random.fork_rng():
        save_file(Digits(**TINY["workload"]["options"]).student().state_dict(), file)
    return {**TINY, "student": {"source": "checkpoint", "file": str(file)}}


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("train_teacher", []),
        ("cache_teacher", ["train_teacher"]),
        ("distill", ["train_teacher", "cache_teacher"]),
        ("quantize", ["train_teacher", "distill"]),
    ],
)
def test_a_house_stage_keeps_its_promises(name: str, before: list[str]) -> None:
    stage = Catalog.load().build("stage", name)
    assert isinstance(stage, Stage)
    check_stage(stage, {**TINY, "stages": before})


@pytest.mark.parametrize("options", [{}, {"share": 0.7, "epochs": 2}])
def test_the_guests_stage_keeps_its_promises(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "guest" / "kdq-guest-pruning" / "src"))
    from kdq_guest_pruning.stage import PruneChannels

    check_stage(PruneChannels(**options), given)


def test_a_recipe_that_does_not_fit_together_is_no_broken_promise() -> None:
    with pytest.raises(RecipeError) as caught:
        check_stage(Halved(), {**TINY, "stages": []})
    assert str(caught.value) == (
        "stage 'halved' reads the slot 'student', which no stage before it gives; list 'distill', which gives it, "
        "before 'halved', or name a trained student: student: {source: checkpoint, file: ...}"
    )


class HalvedStudent(Checkpoint):
    type: Literal["halved-student"] = "halved-student"
    unit: str = "m"


class Halved(Stage):
    """A correct stage that the broken ones below differ from in one thing: each weight is halved, then trained."""

    gives: ClassVar[str] = "student"
    record: ClassVar[type[Record]] = HalvedStudent
    by: float = Field(default=0.5, gt=0, lt=1, description="factor on each weight")

    def inputs(self, asked: Any) -> Any:
        return {"student": Port(slot="student", record=Checkpoint)}

    def reads(self, asked: Any, wired: Any) -> Reads:
        sections = (Section(name="workload"), Section(name="student", only=("factory",)))
        return Reads(sections=sections, plugins=("workload",))

    def untrained(self, work: Any) -> Any:
        return work.model("student")

    def run(self, work: Any) -> Record:
        model = work.model("student")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= self.by
        return self.finished(work, model)

    def finished(self, work: Any, model: nn.Module) -> Record:
        work.progress(1, 1)
        return work.checkpoint(model, of=HalvedStudent)


class Empty(Halved):
    gives: ClassVar[str] = ""


class NoSlot(Stage):
    def reads(self, asked: Any, wired: Any) -> Reads:
        return Reads()

    def run(self, work: Any) -> Record:
        raise NotImplementedError


class NoRecord(NoSlot):
    gives: ClassVar[str] = "student"


class BareRecord(Halved):
    record: ClassVar[type[Record]] = Record


class Undescribed(Halved):
    more: int = 1


class LeftOut(Halved):
    by: float = Field(default=0.5, description="factor", exclude=True)


class Hidden(Halved):
    names: tuple[str, ...] = Field(default=(), description="that the kit finds no other value of")


class OddPort(Halved):
    def inputs(self, asked: Any) -> Any:
        return {"student": "student"}


class NoReads(Halved):
    def reads(self, asked: Any, wired: Any) -> Any:
        return {}


class RefusesItself(Halved):
    def check(self, work: Any) -> None:
        raise ValueError("no")


class ReadsMore(Halved):
    def finished(self, work: Any, model: nn.Module) -> Record:
        work.section("quantize")
        return super().finished(work, model)


class Raises(Halved):
    def finished(self, work: Any, model: nn.Module) -> Record:
        raise ZeroDivisionError("by nothing")


class OtherRecord(Halved):
    def finished(self, work: Any, model: nn.Module) -> Record:
        return work.checkpoint(model)


class OtherSlot(Halved):
    def finished(self, work: Any, model: nn.Module) -> Record:
        return work.checkpoint(model, of=HalvedStudent).model_copy(update={"slot": "teacher"})


class Unreadable(Halved):
    def finished(self, work: Any, model: nn.Module) -> Record:
        return work.checkpoint(model, of=HalvedStudent).model_copy(update={"unit": 3})


class Draws(Halved):
    def finished(self, work: Any, model: nn.Module) -> Record:
        with torch.no_grad():
            model.head.bias += torch.randn(10)  # type: ignore[union-attr,operator]
        return super().finished(work, model)


class Tells(Halved):
    def finished(self, work: Any, model: nn.Module) -> Record:
        return super().finished(work, model).model_copy(update={"unit": str(random.random())})


class Scratches(Halved):
    def finished(self, work: Any, model: nn.Module) -> Record:
        marks = sorted(work.scratch.glob("mark*"))
        (work.scratch / f"mark{len(marks)}").touch()
        return super().finished(work, model).model_copy(update={"unit": f"{len(marks)} tries"})


class FitsTooMuch(Halved):
    """Trains longer if a try was killed."""

    def finished(self, work: Any, model: nn.Module) -> Record:
        kept = work.scratch / "tried"
        spec = FitSpec(epochs=2 if kept.exists() else 1, batch_size=256)
        history = work.fit(model, hard_loss(work.workload), spec)
        kept.touch()
        work.progress(1, 1)
        return work.checkpoint(model, history, of=HalvedStudent)


class Litters(Halved):
    def finished(self, work: Any, model: nn.Module) -> Record:
        Path("notes.txt").write_text("mine")
        return super().finished(work, model)


class Overwrites(Halved):
    def finished(self, work: Any, model: nn.Module) -> Record:
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, work.input("student").file("weights.safetensors"))
        return super().finished(work, model)


class Narrows(Halved):
    """Changes the architecture, and says nothing of it."""

    def finished(self, work: Any, model: nn.Module) -> Record:
        return super().finished(work, self.narrow(model))

    def narrow(self, model: Any) -> nn.Module:
        model.head = nn.Linear(model.head.in_features, 9)
        with torch.no_grad():
            model.head.weight.zero_(), model.head.bias.zero_()
        return model  # type: ignore[no-any-return]


class NarrowsUntold(Narrows):
    """Says it to those that read the weights, and not to the checks."""

    def operate(self, model: nn.Module, surgery: Any) -> nn.Module:
        return self.narrow(model)

    def finished(self, work: Any, model: nn.Module) -> Record:
        work.progress(1, 1)
        return work.checkpoint(self.narrow(model), of=HalvedStudent, surgery=["head"])


class NarrowsMore(Narrows):
    """Not broken: one class fewer at each use. Its port is not called like the slot."""

    def inputs(self, asked: Any) -> Any:
        return {"net": Port(slot=self.gives, record=Checkpoint)}

    def untrained(self, work: Any) -> Any:
        return self.narrow(work.model("net")) if work.has("net") else None

    def run(self, work: Any) -> Record:
        return work.checkpoint(self.narrow(work.model("net")), of=HalvedStudent, surgery=["head"])  # type: ignore[no-any-return]

    def operate(self, model: nn.Module, surgery: Any) -> nn.Module:
        return self.narrow(model)

    def narrow(self, model: Any) -> nn.Module:
        model.head = nn.Linear(model.head.in_features, model.head.out_features - 1)
        with torch.no_grad():
            model.head.weight.zero_(), model.head.bias.zero_()
        return model  # type: ignore[no-any-return]


class NarrowsTeachers(NarrowsMore):
    gives: ClassVar[str] = "teacher"

    def reads(self, asked: Any, wired: Any) -> Reads:
        teacher = Section(name="teacher", only=("members", "inputs", "combine"), held={})
        return Reads(sections=(Section(name="workload"), teacher), plugins=("workload",))


class Alone(Tells):
    """Not broken: what it gives differs from try to try, since it measures time."""

    needs: ClassVar[Needs] = Needs(device="cpu", alone=True)


@pytest.mark.parametrize("stage", [Halved(), Alone()], ids=lambda stage: type(stage).__name__)
def test_a_stage_that_keeps_its_promises_passes(stage: Stage, given: dict[str, Any]) -> None:
    check_stage(stage, given)


@pytest.mark.parametrize(("stage", "before"), [(NarrowsMore(), []), (NarrowsTeachers(), ["train_teacher"])])
def test_a_model_is_built_again_with_the_surgery_of_each_stage_before(
    stage: Stage, before: list[str], given: dict[str, Any]
) -> None:
    name = "narrows-more" if not before else "narrows-teachers"
    check_stage(stage, {**given, "stages": [*before, {"use": name, "name": "first"}]})


BROKEN: dict[type[Stage], str] = {
    NoSlot: "NoSlot should say which slot it gives: gives: ClassVar[str] = ...",
    Empty: "Empty should name the slot it gives, but 'gives' is empty",
    NoRecord: "NoRecord should say which record it gives: record: ClassVar[type[Record]] = ..., a subclass of Record",
    BareRecord: "the record Record of BareRecord should have a type of its own, such as "
    'type: Literal["my-record"] = "my-record"',
    Undescribed: "every option of Undescribed should have a description, but ['more'] have none",
    OddPort: "stage 'odd-port' should give a Port for each input, but not for 'student'",
    NoReads: "reads() of stage 'no-reads' should give Reads, but gives {}",
    LeftOut: "stage 'left-out' should have another key with by=1.5, but it has the same",
    Hidden: "the kit finds no other value of option 'names' of stage 'hidden'; give it one: "
    "check_stage(..., others={'names': ...})",
    RefusesItself: "stage 'refuses-itself' should pass its own check() in this recipe, but it raises ValueError('no')",
    ReadsMore: "stage 'reads-more' should run, but it breaks its contract: stage 'reads-more' reads the section "
    "'quantize', which its reads() does not name; name it there, so that the stage's key holds it",
    Raises: "stage 'raises' should run, but it raises ZeroDivisionError('by nothing')",
    OtherRecord: "stage 'other-record' should run, but it breaks its contract: stage 'other-record' gave a "
    "'Checkpoint', but says that it gives a 'HalvedStudent'; return that, or correct 'record' in its class",
    OtherSlot: "the checkpoint of stage 'other-slot' should be of the slot it gives, 'student', but is of 'teacher'; "
    "make it with work.checkpoint",
    Unreadable: "the record of stage 'unreadable' should read what it writes, but ",
    Draws: "stage 'draws', run twice, should give the same files, byte for byte, but these differ: weights.safetensors",
    Tells: "stage 'tells', run twice, should give the same record, but these fields differ: unit",
    Scratches: "stage 'scratches', killed at event 1 of 1 and tried again, should give the same record, but these "
    "fields differ: unit",
    FitsTooMuch: "stage 'fits-too-much', killed at event ",
    Litters: "stage 'litters' should run, but it raises StageError(",
    Overwrites: "stage 'overwrites' should write to its draft and its scratch alone, but in the store it changed ",
    Narrows: "the weights of stage 'narrows' should fit the model that is built again with operate(), but ",
    NarrowsUntold: "untrained() of stage 'narrows-untold' should give a module of the architecture that the stage "
    "gives, but 'head.bias' has shape (10,) in it, and (9,) in the weights",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_promise_is_named(
    broken: type[Stage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError) as caught:
        check_stage(broken(), given)
    assert str(caught.value).startswith(BROKEN[broken])


def test_a_stage_without_a_method_card_is_named(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> None:
    monkeypatch.setattr(sys.modules[__name__], "__doc__", "What: nothing.")
    with pytest.raises(AssertionError) as caught:
        check_stage(Halved(), given)
    assert str(caught.value) == (
        "the module of Halved should have a method card, but its docstring lacks ['Source|Defaults', 'Limits']"
    )


def test_a_value_that_the_kit_is_given_is_tried(given: dict[str, Any]) -> None:
    check_stage(Hidden(), given, others={"names": ["x"]})
