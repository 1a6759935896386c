"""A model with several tasks, from its teacher to its int8 file."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdq_core.distillation.tasks import distance_between, of_task, tasks_of
from kdq_core.errors import StageError
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Subject, Workload
from kdq_core.store.records import Artifact, Checkpoint, EvaluationReport, TeacherOutputs
from kdq_core.teachers.members import Ensemble
from kdq_core.tensors import Batch, Outputs
from kdq_core.testing.workloads import usable_models
from kdq_evaluators.quality import Quality

FIT = {"epochs": 20, "batch_size": 16, "learning_rate": 0.02}
STAGES = ("train_teacher", "cache_teacher", "distill", "quantize", "export", "evaluate")


class Net(nn.Module):
    """A conv trunk, and a head for each task."""

    def __init__(self, width: int, kinds: int = 3) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, width, 4, 4), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten())
        self.kind, self.bright = nn.Linear(4 * width, kinds), nn.Linear(4 * width, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by task."""
        seen = self.trunk(x)
        return {"kind": self.kind(seen), "bright": self.bright(seen)}


class TwoTasks(Workload):
    """Which quarter of an image is brightest, and whether the image is bright; every second batch has only the first.

    Attributes:
        teacher_kinds: classes that the teacher has for the first task.
    """

    teacher_kinds: int = 3
    sum_of_losses: bool = True

    def fingerprint(self) -> str:
        return "1" * 64

    def teacher(self) -> nn.Module:
        return Net(8, self.teacher_kinds)

    def student(self) -> nn.Module:
        return Net(4)

    def batches(self, split: Any, *, batch_size: int, seed: int = 0, epoch: int = 0, view: Any = None) -> Any:
        count = {"train": 96, "validation": 32, "test": 64}[split]
        x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))
        labels = {"kind": F.avg_pool2d(x, 4).flatten(1)[:, :3].argmax(1), "bright": (x.mean((1, 2, 3)) > 0).long()}
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + 7 * epoch))
        for at in (order if split == "train" else torch.arange(count)).split(batch_size):
            both = split != "train" or len(at) == count or int(at[0]) % 2
            known = labels if both else {"kind": labels["kind"]}
            yield Batch((x[at],), None, at, tasks={name: values[at] for name, values in known.items()})

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        losses = [F.cross_entropy(outputs.tasks[name], labels) for name, labels in batch.tasks.items()]
        return torch.stack(losses).sum() if self.sum_of_losses else torch.stack(losses).mean()


def made(stages_of: Any, installed: Any, home: Path, stages: tuple[str, ...] = STAGES, **sections: Any) -> Any:
    workload = {"use": "digits", "options": sections.pop("options", {})}
    recipe: dict[str, Any] = {
        "teacher": {"fit": FIT, "precision": "fp32"},
        "distill": {"fit": FIT},
        "quantize": {"use": "minmax-qat", "fit": {"epochs": 2, "batch_size": 16}},
        "evaluate": ["quality", "parity", "coverage"],
    }
    run = stages_of(home, installed(TwoTasks), workload=workload, **recipe | sections)
    for name in stages:
        run.stage(name)
    return run


@pytest.fixture(scope="module")
def whole(stages_of: Any, installed: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(stages_of, installed, tmp_path_factory.mktemp("tasks"))


def curves(run: Any, stage: str) -> dict[str, float]:
    record = run.entries[stage].record
    assert isinstance(record, Checkpoint)
    return dict(record.history[-1].values)


@pytest.mark.isa
def test_every_task_is_learnt_with_curves_of_its_own(whole: Any) -> None:
    for stage in ("distill", "quantize"):
        found = curves(whole, stage)
        assert {"train/kind/kd", "train/bright/kd", "train/hard/kind", "train/hard/bright"} <= set(found)
        assert found["validation/top1/kind"] > 0.6
        assert found["validation/top1/bright"] > 0.75
    assert {"validation/top1/kind", "validation/top1/bright"} <= set(curves(whole, "train_teacher"))


def test_the_teachers_answers_are_kept_by_task(whole: Any) -> None:
    record = whole.entries["cache_teacher"].record
    assert isinstance(record, TeacherOutputs)
    assert (record.classes, record.tasks) == (3, {"kind": 3, "bright": 2})
    assert [tensor.name for tensor in record.tensors] == ["tasks/kind/logits", "tasks/bright/logits"]


@pytest.mark.isa
def test_kept_answers_teach_as_the_teacher_beside_the_student(
    whole: Any, stages_of: Any, installed: Any, tmp_path: Path
) -> None:
    teacher = {"fit": FIT, "precision": "fp32", "cache": {"enabled": False}}
    beside = made(stages_of, installed, tmp_path, ("train_teacher", "distill"), teacher=teacher)
    for name in ("train/kind/kd", "train/bright/kd", "train/hard/kind"):
        assert curves(beside, "distill")[name] == pytest.approx(curves(whole, "distill")[name], rel=2e-2)


@pytest.mark.isa
def test_the_int8_file_names_its_outputs_after_the_tasks_and_agrees_with_its_simulation(whole: Any) -> None:
    entry = whole.entries["export"]
    artifact = entry.record
    assert isinstance(artifact, Artifact)
    assert [output.name for output in artifact.outputs] == ["kind", "bright"]
    for name in ("int8.onnx", "student.onnx", "teacher.onnx"):
        assert [output.name for output in onnx.load(entry.file(name)).graph.output] == ["kind", "bright"]
    assert all(operator.int8 for operator in artifact.operators if operator.operator in ("conv", "linear"))
    report = whole.entries["evaluate"].record
    assert isinstance(report, EvaluationReport)
    for metric in ("parity_flips", "parity_flips/bright", "parity_prepared_flips/bright"):
        assert report.value("int8", metric) == 0
    assert report.value("int8", "parity_max_lsb/bright") == 0


def test_quality_is_measured_of_each_task(whole: Any) -> None:
    entry, report = whole.entries["export"], whole.entries["evaluate"].record
    assert isinstance(report, EvaluationReport)
    session = onnxruntime.InferenceSession(entry.file("int8.onnx"))
    (batch,) = TwoTasks().batches("test", batch_size=64)
    answers = session.run(None, {session.get_inputs()[0].name: batch.inputs[0].numpy()})
    for suffix, name, logits in (("", "kind", answers[0]), ("/bright", "bright", answers[1])):
        right = float((logits.argmax(1) == batch.tasks[name].numpy()).mean())
        assert report.value("int8", f"top1{suffix}") == pytest.approx(right)
        assert report.value("int8", f"top1_converted{suffix}") == pytest.approx(right)
        assert report.value("int8", f"agreement{suffix}") is not None
    assert report.value("int8", "top1/kind") is None


def test_a_distiller_for_one_task_leaves_the_other_to_its_labels(
    stages_of: Any, installed: Any, tmp_path: Path
) -> None:
    losses = [{"use": "logit-kd", "task": "kind"}, {"use": "mse-logits", "task": "bright", "weight": 0.0}]
    fit = {"epochs": 1, "batch_size": 96}
    run = made(
        stages_of, installed, tmp_path, STAGES[:3], teacher={"fit": fit}, distill={"fit": fit, "losses": losses}
    )  # fmt: skip
    found = curves(run, "distill")
    assert "train/logit-kd/kind/kd" in found
    assert not any("logit-kd/bright" in name for name in found)
    assert found["train/mse-logits/bright/mse"] == 0


def test_a_task_that_is_not_there_is_named_with_those_that_are(stages_of: Any, installed: Any, tmp_path: Path) -> None:
    fit = {"epochs": 1, "batch_size": 96}
    distill = {"fit": fit, "losses": [{"use": "logit-kd", "task": "kinds"}]}
    with pytest.raises(StageError) as caught:
        made(stages_of, installed, tmp_path, STAGES[:3], teacher={"fit": fit}, distill=distill)
    assert str(caught.value) == (
        "distiller 'logit-kd' compares the task 'kinds', but the student gives the tasks bright, kind; did you mean "
        "'kind'? Let both models give a dict with that name, or correct the distiller's 'task'"
    )


def test_an_error_about_one_task_says_which(stages_of: Any, installed: Any, tmp_path: Path) -> None:
    fit = {"epochs": 1, "batch_size": 96}
    with pytest.raises(StageError, match=r"^task 'kind': .*\(2, 3\).*\(2, 5\)"):
        made(
            stages_of, installed, tmp_path, STAGES[:3],
            options={"teacher_kinds": 5}, teacher={"fit": fit}, distill={"fit": fit},
        )  # fmt: skip
    with pytest.raises(StageError, match=r"^task 'bright': distiller 'dkd' needs a label for each sample"):
        made(
            stages_of, installed, tmp_path, STAGES[:3],
            teacher={"fit": fit}, distill={"fit": {"epochs": 1, "batch_size": 8}, "use": "dkd"},
        )  # fmt: skip


def test_the_shipped_teacher_can_teach_from_its_onnx_file_by_task(
    whole: Any, stages_of: Any, installed: Any, tmp_path: Path
) -> None:
    member = {"source": "onnx", "file": str(whole.entries["export"].file("teacher.onnx")), "tasks": ["bright", "kind"]}
    fit = {"epochs": 1, "batch_size": 96}
    run = made(
        stages_of, installed, tmp_path / "a", STAGES[:3], teacher={"members": [member]}, distill={"fit": fit}
    )  # fmt: skip
    record = run.entries["cache_teacher"].record
    assert isinstance(record, TeacherOutputs)
    assert record.tasks == {"bright": 2, "kind": 3}
    rows = np.fromfile(run.entries["cache_teacher"].file(record.tensors[1].path), "<f2").reshape(-1, 3)
    kept = whole.entries["cache_teacher"]
    same = np.fromfile(kept.file(kept.record.tensors[0].path), "<f2").reshape(-1, 3)
    np.testing.assert_allclose(rows[:96], same[:96], atol=2e-2)
    unnamed = {name: value for name, value in member.items() if name != "tasks"}
    with pytest.raises(StageError) as caught:
        made(stages_of, installed, tmp_path / "b", STAGES[:3], teacher={"members": [unnamed]}, distill={"fit": fit})
    assert str(caught.value) == (
        "the student gives the tasks bright, kind, the teacher one output without a name; say with 'task' of distiller "
        "'logit-kd' which of them it is for, or name the outputs of an ONNX teacher in its 'tasks'"
    )
    for distill in ({"fit": fit, "losses": [{"use": "logit-kd", "task": "kind"}]}, {"fit": fit}):  # both remedies
        chosen = unnamed if "losses" in distill else member
        done = made(
            stages_of, installed, tmp_path / "b", STAGES[:3], teacher={"members": [chosen]}, distill=distill
        )  # fmt: skip
        assert any("kind/kd" in name or name == "train/kd" for name in curves(done, "distill"))
    strange = member | {"tasks": ["brght", "kind"]}
    with pytest.raises(StageError, match=r"no output 'brght' \('tasks' in 'teacher.members'\); it has bright, kind"):
        made(stages_of, installed, tmp_path / "b", STAGES[:3], teacher={"members": [strange]}, distill={"fit": fit})


@pytest.mark.isa
def test_two_teachers_are_combined_task_by_task(stages_of: Any, installed: Any, tmp_path: Path) -> None:
    files = []
    for number in range(2):
        torch.manual_seed(number)
        files.append(tmp_path / f"{number}.safetensors")
        save_file(Net(8).state_dict(), files[-1])
    members = [{"source": "checkpoint", "file": str(file), "weight": w} for file, w in zip(files, (1, 3), strict=True)]
    run = made(stages_of, installed, tmp_path / "home", STAGES[:2], teacher={"members": members, "precision": "fp32"})
    entry = run.entries["cache_teacher"]
    (batch,) = TwoTasks().batches("train", batch_size=96)
    said = []
    for number in range(2):
        torch.manual_seed(number)
        with torch.no_grad():
            said.append(Net(8).eval()(batch.inputs[0])["bright"].numpy())
    rows = np.fromfile(entry.file(entry.record.tensors[1].path), "<f2").reshape(-1, 2)[batch.ids.numpy()]
    np.testing.assert_allclose(rows, (said[0] + 3 * said[1]) / 4, atol=2e-3)


def test_the_kit_passes_a_workload_of_two_tasks_and_catches_a_loss_that_is_no_sum() -> None:
    usable_models(TwoTasks())
    with pytest.raises(AssertionError, match="should be the sum of its losses with the labels of one task alone"):
        usable_models(TwoTasks(sum_of_losses=False))


def test_features_a_control_and_openvino_know_of_tasks(stages_of: Any, installed: Any, tmp_path: Path) -> None:
    fit = {"epochs": 1, "batch_size": 96}
    losses = ["logit-kd", {"use": "fitnet", "taps": [["trunk.2", "trunk.2"]]}]
    run = made(
        stages_of, installed, tmp_path, ("train_teacher", "distill", "quantize", "export", "evaluate"),
        teacher={"fit": fit}, distill={"fit": fit, "losses": losses, "control": True},
        quantize={"use": "minmax-qat", "fit": {"epochs": 1, "batch_size": 96}},
        target={"use": "openvino", "options": {"placement": "smallest"}}, evaluate=["quality", "parity"],
    )  # fmt: skip
    for stage in ("distill", "quantize"):
        named = {name for epoch in run.entries[stage].record.history for name in epoch.values}
        assert {"train/fitnet/hint", "train/logit-kd/kind/kd", "train/hard/kind"} <= named
    gains = run.entries["distill"].record.gains
    assert [(gain.metric, gain.samples) for gain in gains] == [("top1/kind", 64), ("top1/bright", 64)]
    report = run.entries["evaluate"].record
    assert isinstance(report, EvaluationReport)
    assert report.value("int8", "top1/bright") is not None
    assert report.value("int8", "parity_p50_lsb/bright") == 0


class Bare(TwoTasks):
    """No training sample has a label of the second task."""

    def batches(self, split: Any, **asked: Any) -> Any:
        for batch in super().batches(split, **asked):
            yield replace(batch, tasks={"kind": batch.tasks["kind"]}) if split == "train" else batch


def test_a_task_without_labels_is_taught_by_a_teacher_that_knows_it_alone(
    stages_of: Any, installed: Any, tmp_path: Path
) -> None:
    def run(home: str, losses: Any, **teacher: Any) -> Any:
        return stages_of(
            tmp_path / home, installed(Bare), workload={"use": "digits"},
            teacher={"cache": {"enabled": False}, **teacher},
            distill={"fit": {"epochs": 1}, "control": True, "losses": losses},
        )  # fmt: skip

    with pytest.raises(StageError) as caught:
        run("all", ["logit-kd"], fit=FIT).stage("train_teacher")
    assert str(caught.value) == (
        "the teacher is trained on labels, but no batch of the workload's split 'train' has any of the task 'bright', "
        "so what it says of that task would mean nothing; label some, name the other tasks as 'task' of the "
        "distillers, or a teacher that is trained already in 'teacher.members'"
    )
    assert run("one", [{"use": "logit-kd", "task": "kind"}], fit=FIT).stage("train_teacher")
    file = tmp_path / "t.safetensors"
    save_file(Net(8, 3).state_dict(), file)
    known = run("known", ["logit-kd"], members=[{"source": "checkpoint", "file": str(file)}])
    known.stage("train_teacher")
    gains = known.stage("distill").record.gains
    assert [gain.metric for gain in gains] == ["top1/kind"]  # the control cannot learn the other


class Unnamed(TwoTasks):
    """Its labels have no names, where its models' outputs have."""

    def batches(self, split: Any, **asked: Any) -> Any:
        for batch in super().batches(split, **asked):
            yield Batch(batch.inputs, batch.tasks["kind"], batch.ids)


def test_labels_that_no_output_is_meant_for_are_refused(stages_of: Any, installed: Any, tmp_path: Path) -> None:
    text = (
        "the model gives the tasks bright, kind, but the workload's batches have labels without a name ('targets'); "
        "put labels into `Batch.tasks` under the names of a model's dict, or let the model give one tensor and put "
        "them into `targets`"
    )
    run = stages_of(tmp_path, installed(Unnamed), workload={"use": "digits"}, teacher={"fit": FIT})
    with pytest.raises(StageError) as caught:
        run.stage("train_teacher")
    assert str(caught.value) == text
    with pytest.raises(AssertionError) as told:
        usable_models(Unnamed())
    assert str(told.value) == text


def outputs(**tasks: Tensor) -> Outputs:
    return Outputs(next(iter(tasks.values())), tasks=tasks)


def test_a_model_with_one_output_meets_the_task_the_recipe_names() -> None:
    one, two, three = (torch.full((2, 3), float(n)) for n in range(3))
    several, single = outputs(kind=one, bright=two), Outputs(three)
    for student, teacher in ((several, single), (single, several)):
        assert tasks_of(student, teacher, "bright", "kd", features=False) == ("bright",)
        with pytest.raises(
            StageError, match=r"the tasks bright, kind, the (student|teacher) one output without a name"
        ):
            tasks_of(student, teacher, None, "kd", features=False)
        assert tasks_of(student, teacher, None, "hint", features=True) == ("",)
    assert torch.equal(of_task(several, "bright").logits, two)
    assert torch.equal(of_task(single, "bright").logits, three)
    with pytest.raises(StageError, match=r"both models give one output without a name; leave 'task' out$"):
        tasks_of(single, single, "bright", "kd", features=False)


def test_the_gap_where_no_task_is_named_is_the_mean_over_the_shared_ones() -> None:
    far, near = torch.tensor([[9.0, -9.0]]), torch.tensor([[-9.0, 9.0]])
    student, teacher = outputs(kind=far, bright=far), outputs(bright=far, kind=near)
    assert distance_between(student, teacher, "", "classes") == pytest.approx(0.5, abs=1e-6)
    assert distance_between(student, teacher, "kind", "classes") == pytest.approx(1.0, abs=1e-6)


def test_teachers_of_one_task_each_make_one_of_two(whole: Any) -> None:
    class Says(nn.Module):
        def __init__(self, **said: float) -> None:
            super().__init__()
            self.said = said

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {name: x + value for name, value in self.said.items()}

    both = Ensemble([Says(kind=1.0), Says(bright=2.0, kind=5.0)], [1.0, 3.0], "mean")
    given = both(torch.zeros(2, 3))
    assert {name: float(value[0, 0]) for name, value in given.items()} == {"kind": 4.0, "bright": 2.0}
    mixed = Ensemble([Says(kind=1.0), nn.Identity()], [1.0, 1.0], "mean")
    with pytest.raises(StageError, match=r"teacher 1 gives the tasks kind, teacher 2 one output without a name; let"):
        mixed(torch.zeros(2, 3))


def test_few_classes_are_kept_whole_beside_the_top_k_of_many(stages_of: Any, installed: Any, tmp_path: Path) -> None:
    fit = {"epochs": 1, "batch_size": 96}
    run = made(
        stages_of, installed, tmp_path, STAGES[:3], teacher={"fit": fit, "cache": {"top_k": 2}}, distill={"fit": fit}
    )
    names = [tensor.name for tensor in run.entries["cache_teacher"].record.tensors]
    assert names == [f"tasks/kind/{part}" for part in ("top", "top_index", "top_rest")] + ["tasks/bright/logits"]


def test_tasks_are_compared_by_name_whatever_order_a_file_has_them_in(whole: Any) -> None:
    entry = whole.entries["export"]
    model = onnx.load(entry.file("teacher.onnx"))
    kind, bright = model.graph.output
    del model.graph.output[:]
    model.graph.output.extend([bright, kind])
    swapped = entry.folder.parent / "swapped.onnx"
    onnx.save(model, swapped)
    target = Catalog.load().build("target", "onnxruntime-cpu", {})
    make = partial(Subject, target=target, threads=1)
    student = make(role="student", path=entry.file("student.onnx"))
    found = [
        {m.name: m.value for m in Quality().evaluate(make(role="teacher", path=path), student, the_test_split)}
        for path in (entry.file("teacher.onnx"), swapped)
    ]
    assert found[0] == found[1]


def test_a_teacher_without_the_names_of_the_tasks_is_not_measured_and_stops_nothing(whole: Any) -> None:
    entry = whole.entries["export"]
    model = onnx.load(entry.file("teacher.onnx"))
    (kind, _), lone = model.graph.output, onnx.ValueInfoProto()
    lone.CopyFrom(kind)
    lone.name = "lone"
    model.graph.node.append(onnx.helper.make_node("Identity", [kind.name], ["lone"]))
    del model.graph.output[:]
    model.graph.output.append(lone)
    file = entry.folder.parent / "lone.onnx"
    onnx.save(model, file)
    make = partial(Subject, target=Catalog.load().build("target", "onnxruntime-cpu", {}), threads=1)
    student = make(role="student", path=entry.file("student.onnx"))
    assert Quality().evaluate(make(role="teacher", path=file), student, the_test_split) == ()


def the_test_split() -> Any:
    return TwoTasks().batches("test", batch_size=64)
