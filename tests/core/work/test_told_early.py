"""What only the quantized student shows is told before its teacher is trained, and before it is distilled."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdq_core.errors import RecipeError, StageError
from kdq_core.plugins.catalog import Catalog
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

FIT = {"epochs": 1, "batch_size": 32}
TEACHER = {"fit": FIT, "cache": {"enabled": False}}


class Branch(nn.Module):
    """Decides by a value, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x.flatten(1))
        return y if y.sum() > 0 else -y


@pytest.fixture
def branching(tiny: Catalog, installed: Any) -> Catalog:
    """The tiny workload with a student that cannot be captured."""
    base: Any = type(tiny.build("workload", "digits", {}))

    class Branching(base):  # type: ignore[misc]
        def student(self) -> nn.Module:
            return Branch()

    return installed(Branching)


@pytest.mark.parametrize("stage", ["train_teacher", "distill"])
def test_a_rule_that_matches_nothing(stages_of: Any, tiny: Catalog, tmp_path: Path, stage: str) -> None:
    good, bad = ({"rules": [{"match": match, "weights": 4}]} for match in ("conv", "cnov"))
    distill = {"fit": FIT}
    run = stages_of(tmp_path, tiny, workload="digits", teacher=TEACHER, distill=distill, quantize=bad)
    if stage == "distill":  # the teacher is there already, from a run with another section 'quantize'
        first = stages_of(tmp_path, tiny, workload="digits", teacher=TEACHER, distill=distill, quantize=good)
        first.stage("train_teacher")
        run.entries = first.entries
    with pytest.raises(RecipeError, match=r"^quantize.rules\[0\]: no operator matches 'cnov'; did you mean 'conv'"):
        run.stage(stage)


def test_a_student_that_cannot_be_captured(stages_of: Any, branching: Catalog, tmp_path: Path) -> None:
    run = stages_of(tmp_path, branching, workload="digits", teacher=TEACHER, distill={"fit": FIT})
    with pytest.raises(StageError, match=r"^model 'Branch' cannot be captured as a graph: its forward needs the value"):
        run.stage("train_teacher")


def test_a_tap_that_leaves_nothing_in_the_graph(stages_of: Any, tiny: Catalog, installed: Any, tmp_path: Path) -> None:
    base: Any = type(tiny.build("workload", "digits", {}))

    class Marked(base):  # type: ignore[misc]
        def student(self) -> nn.Module:
            student: nn.Sequential = super().student()
            named = dict(student.named_children())
            return nn.Sequential(OrderedDict({**named, "relu": nn.Sequential(named["relu"], nn.Identity())}))

    def run(where: str, quantizer: str) -> None:
        losses = [{"use": "fitnet", "taps": [["relu.1", "relu"]]}]
        made = stages_of(
            tmp_path / where, installed(Marked), workload="digits", teacher=TEACHER,
            distill={"fit": FIT, "losses": losses}, quantize={"use": quantizer},
        )  # fmt: skip
        made.stage("train_teacher")

    with pytest.raises(RecipeError) as caught:
        run("trained", "minmax-qat")
    assert str(caught.value) == (
        "tap 'relu.1' of the student left no operator in the captured graph, so there is nothing to tap in "
        "quantization-aware training; tap the layer in front of it"
    )
    run("calibrated", "static")  # where nothing is trained in the graph, the tap is good


def test_a_tap_on_a_frozen_layer(stages_of: Any, tiny: Catalog, installed: Any, tmp_path: Path) -> None:
    base: Any = type(tiny.build("workload", "digits", {}))

    class Half(base):  # type: ignore[misc]
        def student(self) -> nn.Module:
            student: nn.Sequential = super().student()
            student[:2].requires_grad_(requires_grad=False)
            return student

    losses = [{"use": "fitnet", "taps": [["relu", "relu"]]}]
    distill = {"fit": FIT, "losses": losses}
    run = stages_of(tmp_path, installed(Half), workload="digits", teacher=TEACHER, distill=distill)
    with pytest.raises(StageError, match=r"^tap 'relu' of the student carries no gradient, so comparing it would"):
        run.stage("train_teacher")


class Up(nn.Module):
    """A transposed convolution, which no target runs in int8, and an operator that ONNX does not have."""

    def __init__(self, strange: bool) -> None:
        super().__init__()
        self.up, self.head, self.strange = nn.ConvTranspose2d(1, 2, 2), nn.Linear(162, 3), strange

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(x).flatten(1)
        y = self.head(y)
        return torch.special.bessel_j0(y) if self.strange else y


@pytest.mark.parametrize(
    ("strange", "said"),
    [
        (True, r"^model 'Up' cannot be written as ONNX: .*bessel_j0.*; replace the operator by one that ONNX knows"),
        (False, r"^required gates are not met: int8 coverage_macs ≥ 1: 0.4\d*, bound 1; in float: up \(KDQ has no int8 "
         r"form of transposed convolutions\); nothing was registered"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_or_runs_in_float_too_much(
    stages_of: Any, tiny: Catalog, installed: Any, tmp_path: Path, strange: bool, said: str
) -> None:
    base: Any = type(tiny.build("workload", "digits", {}))

    class Raising(base):  # type: ignore[misc]
        def student(self) -> nn.Module:
            return Up(strange)

    catalog, sections = installed(Raising), {"workload": "digits", "teacher": TEACHER, "distill": {"fit": FIT}}
    state = torch.get_rng_state()
    with pytest.raises(StageError, match=said):
        stages_of(tmp_path, catalog, trial=True, **sections).stage("train_teacher")
    assert torch.equal(torch.get_rng_state(), state)
    if not strange:
        gates = [{"metric": "coverage_macs", "at_least": 1.0}]
        stages_of(tmp_path, catalog, trial=True, **sections, gates=gates).stage("train_teacher")
        assert not list((tmp_path / "scratch").rglob("*.onnx"))


def test_a_float_file_that_gives_other_outputs(
    stages_of: Any, tiny: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = OnnxRuntimeCpu.export

    def doubled(target: Any, model: nn.Module, example: Any, path: Path) -> None:
        export(target, nn.Sequential(model, Double()) if path.stem == "student" else model, example, path)

    monkeypatch.setattr(OnnxRuntimeCpu, "export", doubled)
    run = stages_of(tmp_path, tiny, trial=True, workload="digits", teacher=TEACHER, distill={"fit": FIT})
    with pytest.raises(StageError, match=r"^the file of the float student, not trained yet, gives other outputs than "):
        run.stage("train_teacher")


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x
