"""A student that is trained already: quantized as it is, or trained further; and a stage that is listed twice."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdq_core.errors import RecipeError, StageError
from kdq_core.plugins.catalog import Catalog
from kdq_core.store.records import Artifact, Checkpoint, EvaluationReport

FIT = {"epochs": 1, "batch_size": 32}
FACTORY = """
from collections import OrderedDict
from torch import nn

def make():
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(1, 5, 4, 4), bn=nn.BatchNorm2d(5), relu=nn.ReLU(), flat=nn.Flatten(), head=nn.Linear(20, 3)
    ))
"""


def net() -> nn.Module:
    """What `FACTORY` makes, with weights and statistics that training could have left."""
    torch.manual_seed(3)
    layers = {
        "conv": nn.Conv2d(1, 5, 4, 4), "bn": nn.BatchNorm2d(5), "relu": nn.ReLU(), "flat": nn.Flatten(),
        "head": nn.Linear(20, 3),
    }  # fmt: skip
    model = nn.Sequential(OrderedDict(layers))
    for _ in range(4):
        model(torch.randn(16, 1, 8, 8) * 2 + 1)
    return model.eval()


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The section `student` of a recipe; its file and its factory are in the folder the test runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"net_of_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(FACTORY)
    save_file(net().state_dict(), "net.safetensors")
    return {"source": "checkpoint", "file": "net.safetensors", "factory": f"{name}:make"}


def test_a_given_model_is_quantized_and_nothing_of_it_changes_before(
    stages_of: Any, tiny: Catalog, tmp_path: Path, given: dict[str, Any]
) -> None:
    run = stages_of(
        tmp_path / "home", tiny, workload="digits", student=given, stages=["quantize", "export", "evaluate"],
        quantize={"use": "static"}, evaluate=["quality", "size", "parity", "coverage"],
    )  # fmt: skip
    assert [node.name for node in run.plan.nodes] == ["read_student", "quantize", "export", "evaluate"]
    assert [model.slot for model in run.plan.models] == ["student", "int8"]
    assert [gate.metric for gate in run.plan.recipe.gates] == ["coverage_macs", "parity_flips"]
    assert run.plan.note == (
        "no teacher is measured beside the int8 file, so the default gates do not compare with one; no evaluator of "
        "the recipe gives 'speedup', so the default gates do without"
    )
    read = run.stage("read_student")
    assert isinstance(read.record, Checkpoint)
    kept, asked = load_file(read.file(read.record.weights)), net().state_dict()
    assert kept.keys() == asked.keys()
    assert all(torch.equal(kept[name], asked[name]) for name in asked)
    assert {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"} <= kept.keys()
    run.stage("quantize")
    exported = run.stage("export")
    assert isinstance(exported.record, Artifact)
    assert exported.record.baselines == {"student": "student.onnx"}
    x = torch.randn(7, 1, 8, 8)
    session = onnxruntime.InferenceSession(exported.file("student.onnx"), providers=["CPUExecutionProvider"])
    answers = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(answers), net()(x), rtol=0, atol=1e-5)
    report = run.stage("evaluate").record
    assert isinstance(report, EvaluationReport)
    assert sorted(report.models) == ["int8", "student"]


def test_a_given_model_is_trained_with_its_quantizers_on_labels_alone(
    stages_of: Any, tiny: Catalog, tmp_path: Path, given: dict[str, Any]
) -> None:
    run = stages_of(
        tmp_path / "home", tiny, workload="digits", student=given, stages=["quantize", "export"],
        quantize={"use": "minmax-qat", "fit": FIT},
        gates=[{"metric": "top1", "at_least": 0.5}], target={"use": "onnxruntime-cpu"},
    )  # fmt: skip
    assert run.plan.note == "'gates' do nothing, since no stage of the recipe measures a model; 'evaluate' would"
    for node in run.plan.nodes:
        run.stage(node.name)
    record = run.entries["quantize"].record
    assert isinstance(record, Checkpoint)
    assert set(record.history[0].values) == {"train/loss", "validation/loss", "validation/top1"}  # no other term
    assert set(run.plan.node("quantize").parents) == {"student"}


def test_a_control_of_quantization_needs_a_teacher(
    stages_of: Any, tiny: Catalog, tmp_path: Path, given: dict[str, Any]
) -> None:
    run = stages_of(
        tmp_path / "home", tiny, workload="digits", student=given, stages=["quantize"], quantize={"control": True}
    )
    with pytest.raises(RecipeError) as caught:
        run.stage("read_student")
    assert str(caught.value) == (
        "'quantize.control' asks what the teacher brings, but no stage gives a teacher; leave it out, or list "
        "'train_teacher' before 'quantize'"
    )


def test_the_code_of_a_students_factory_and_the_bytes_of_its_file_are_in_the_key(
    stages_of: Any, tiny: Catalog, tmp_path: Path, given: dict[str, Any]
) -> None:
    def key(stage: str = "read_student") -> str:
        run = stages_of(tmp_path / "home", tiny, workload="digits", student=given, stages=["quantize"])
        return str(run.plan.node(stage).key({"read_student": "0" * 64}))

    first, quantized = key(), key("quantize")  # the weights may stay the same, and the module not
    module = Path(f"{given['factory'].partition(':')[0]}.py")
    module.write_text(FACTORY.replace("nn.ReLU()", "nn.ReLU6()"))
    second = key()
    assert key("quantize") != quantized
    module.write_text(FACTORY)
    assert key() == first != second
    shutil.move("net.safetensors", "moved.safetensors")
    given["file"] = "moved.safetensors"
    assert key() == first
    save_file({name: value * 1.01 for name, value in load_file("moved.safetensors").items()}, "moved.safetensors")
    assert key() != first


FITS_NOT = "the weights in 'net.safetensors' do not fit the module of {factory}: "


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("other keys", FITS_NOT + "1 key missing (head.bias), 1 key unexpected (tail.bias); name the 'factory' in "
         "'student' that makes the file's own module, or another file"),
        ("other shape", FITS_NOT + "1 key of another shape (head.bias (4,) where the module has (3,)); name the "
         "'factory' in 'student' that makes the file's own module, or another file"),
        ("text", "the student's file 'net.safetensors' is no safetensors file: Error while deserializing header: "
         "header too small; write one where the model is, with safetensors.torch.save_file(model.state_dict(), "
         "'net.safetensors')"),
        ("no function", "the student's factory '{module}:mak' cannot be loaded: module '{module}' has no attribute "
         "'mak'; install its package, put its folder on PYTHONPATH, or correct 'factory' in 'student'"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_told_before_anything_runs(
    stages_of: Any, tiny: Catalog, tmp_path: Path, given: dict[str, Any], spoil: str, message: str
) -> None:
    weights = dict(net().state_dict())
    if spoil == "other keys":
        weights["tail.bias"] = weights.pop("head.bias")
    if spoil == "other shape":
        weights["head.bias"] = torch.zeros(4)
    if spoil == "text":
        Path("net.safetensors").write_text("no")
    else:
        save_file(weights, "net.safetensors")
    module = given["factory"].partition(":")[0]
    given["factory"] = f"{module}:mak" if spoil == "no function" else given["factory"]
    stages = ["train_teacher", "distill", "quantize"]
    run = stages_of(
        tmp_path / "home", tiny, workload="digits", student=given, stages=stages, teacher={"fit": FIT},
        distill={"fit": FIT},
    )  # fmt: skip
    with pytest.raises(StageError) as caught:
        run.stage("train_teacher")  # it needs no student, but the check looks ahead
    assert str(caught.value) == message.format(factory=given["factory"], module=module)
    assert list((tmp_path / "home" / "store").glob("??/*")) == []


def test_a_file_that_is_missing_is_told_when_the_plan_is_made(
    stages_of: Any, tiny: Catalog, tmp_path: Path, given: dict[str, Any]
) -> None:
    Path("net.safetensors").unlink()
    with pytest.raises(RecipeError) as caught:
        stages_of(tmp_path / "home", tiny, workload="digits", student=given, stages=["quantize"])
    assert str(caught.value) == (
        f"the student's file 'net.safetensors' is not there, seen from {str(tmp_path)!r}; correct 'file' in 'student', "
        "or give its whole path"
    )


def test_distillation_trains_a_given_student_further(
    stages_of: Any, tiny: Catalog, tmp_path: Path, given: dict[str, Any]
) -> None:
    still = {"epochs": 1, "batch_size": 32, "learning_rate": 1e-6, "weight_decay": 0}
    run = stages_of(
        tmp_path / "home", tiny, workload="digits", student=given, stages=["train_teacher", "distill"],
        teacher={"fit": FIT}, distill={"fit": still},
    )  # fmt: skip
    assert set(run.plan.node("distill").parents) == {"student", "teacher"}
    for node in run.plan.nodes:
        run.stage(node.name)
    entry = run.entries["distill"]
    assert isinstance(entry.record, Checkpoint)
    trained, before = load_file(entry.file(entry.record.weights)), net().state_dict()
    moved = (trained["head.weight"] - before["head.weight"]).abs().max()
    assert 0 < moved < 1e-4


def test_a_given_student_cannot_start_from_the_teacher_too(
    stages_of: Any, tiny: Catalog, tmp_path: Path, given: dict[str, Any]
) -> None:
    run = stages_of(
        tmp_path / "home", tiny, workload="digits", student=given, stages=["train_teacher", "distill"],
        teacher={"fit": FIT}, distill={"fit": FIT, "transfer": {}},
    )  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        run.stage("train_teacher")
    assert str(caught.value) == (
        "'distill.transfer' starts the student from the teacher's parameters, but it starts from the student that "
        "stage 'read_student' gives; leave one of the two out"
    )


def test_a_stage_listed_twice_goes_on_from_its_first_time(stages_of: Any, tiny: Catalog, tmp_path: Path) -> None:
    run = stages_of(
        tmp_path / "home", tiny, workload="digits", teacher={"fit": FIT}, distill={"fit": FIT},
        quantize={"use": "minmax-qat", "fit": FIT},
        stages=["train_teacher", "distill", {"use": "distill", "name": "distill-again"}, "quantize", "export"],
        target="onnxruntime-cpu",
    )  # fmt: skip
    assert run.plan.node("distill-again").parents == {"teacher": "train_teacher", "student": "distill"}
    assert run.plan.node("quantize").parents["student"] == "distill-again"
    for node in run.plan.nodes:
        run.stage(node.name)
    first, second = run.entries["distill"], run.entries["distill-again"]
    assert first.manifest.key != second.manifest.key
    assert first.digest != second.digest
    assert isinstance(first.record, Checkpoint)
    assert isinstance(second.record, Checkpoint)
    one, two = (load_file(entry.file(entry.record.weights)) for entry in (first, second))
    assert float(two["bn.num_batches_tracked"]) == 2 * float(one["bn.num_batches_tracked"]) > 0


def test_a_recipe_may_teach_without_kept_outputs(stages_of: Any, tiny: Catalog, tmp_path: Path) -> None:
    run = stages_of(
        tmp_path / "home", tiny, workload="digits", teacher={"fit": FIT}, distill={"fit": FIT},
        quantize={"use": "minmax-qat", "fit": FIT},
        stages=["train_teacher", "distill", "quantize"],
    )  # fmt: skip
    for node in run.plan.nodes:
        run.stage(node.name)
    assert set(run.plan.node("distill").parents) == {"teacher"}
    record = run.entries["quantize"].record
    assert isinstance(record, Checkpoint)
    assert "train/kd" in record.history[0].values
