"""The quantizer is left to the run: it calibrates first, and trains at the end of one schedule where that is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdq_core.store.records import Checkpoint, Choice
from kdq_core.tensors import Batch
from kdq_core.work import choosing
from kdq_core.work.choosing import Compared, compared
from tests.core.conftest import Tiny

FIT = {"epochs": 1, "batch_size": 32}
STAGES = ("train_teacher", "cache_teacher", "distill", "quantize")


def run_of(stages_of: Any, tiny: Any, home: Path, **sections: Any) -> Any:
    run = stages_of(
        home, tiny, workload={"use": "digits"}, **{
            "teacher": {"fit": FIT, "cache": {"views": 1}}, "distill": {"fit": {**FIT, "epochs": 3}},
            "quantize": {"fit": {"epochs": 1}}, **sections,
        },
    )  # fmt: skip
    for name in STAGES:
        run.stage(name)
    return run


def records(run: Any) -> tuple[Checkpoint, Checkpoint]:
    return run.entries["distill"].record, run.entries["quantize"].record


def epochs(record: Checkpoint) -> list[int]:
    return [one.epoch for one in record.history]


def test_calibration_that_loses_nothing_stays_after_all_epochs_in_float(
    stages_of: Any, tiny: Any, tmp_path: Path
) -> None:
    run = run_of(stages_of, tiny, tmp_path)
    student, quantized = records(run)
    assert epochs(student) == [1, 2, 3, 4]
    assert student.before_tail is not None
    assert (student.before_tail.weights, student.before_tail.epoch) == ("kept.safetensors", 3)
    choice = quantized.choice
    assert choice is not None
    assert (choice.use, choice.metric, choice.samples, choice.tolerance) == ("static", "top1", 32, 0.005)
    assert choice.values.keys() == {"float", "static"}
    assert choice.values["float"] == student.history[-1].values["validation/top1"]
    assert choice.why.startswith("static: it loses ")
    again = run_of(stages_of, tiny, tmp_path / "again")
    assert again.entries["quantize"].digest == run.entries["quantize"].digest


def test_calibration_that_loses_too_much_is_followed_by_the_tail_of_the_schedule_and_the_better_is_taken(
    stages_of: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Tensor] = []
    lost = iter(
        [Compared("top1", (0.9, 0.8), 32, 0.1, shown=True), Compared("top1", (0.8, 0.85), 32, -0.05, shown=False)]
    )
    monkeypatch.setattr(choosing, "compared", lambda *_given: next(lost))
    go_back = choosing.trained.__globals__["go_back"]

    def seen(work: Any, student: nn.Module) -> None:
        go_back(work, student)
        began.append(student.state_dict()["conv.weight"].clone())

    monkeypatch.setitem(choosing.trained.__globals__, "go_back", seen)
    run = run_of(stages_of, tiny, tmp_path, budget={"epochs": 5}, quantize={"fit": {"epochs": 2}})
    student, quantized = records(run)
    assert (epochs(student), epochs(quantized)) == ([1, 2, 3, 4, 5], [4, 5])
    assert quantized.choice == Choice(
        use="minmax-qat", metric="top1", samples=32, tolerance=0.005,
        values={"float": 0.9, "static": 0.8, "minmax-qat": 0.85},
        why="minmax-qat: static loses 10 points against float, and at most 0.5 points may be lost; minmax-qat trained "
        "the last 2 of 5 epochs and is better (float 90 %, static 80 %, minmax-qat 85 % top-1)",
    )  # fmt: skip
    from safetensors.torch import load_file

    folder = run.entries["distill"].folder
    whole, kept = (load_file(folder / name)["conv.weight"] for name in ("weights.safetensors", "kept.safetensors"))
    assert torch.equal(began[0], whole)
    assert torch.equal(began[1], kept)
    work = run.work("export", tmp_path / "draft")
    assert type(work.quantizer).__name__ == "MinMaxQat"
    assert work.quantized() is not None
    assert any("static loses 10 points on validation" in str(event.get("text")) for event in run.events)


def test_training_that_is_no_better_leaves_calibration(
    stages_of: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = iter([Compared("loss", (0.2, 0.3), 32, 0.5, shown=True), Compared("loss", (0.3, 0.4), 32, 0.3, shown=True)])
    monkeypatch.setattr(choosing, "compared", lambda *_given: next(lost))
    run = run_of(stages_of, tiny, tmp_path)
    choice = records(run)[1].choice
    assert choice is not None
    assert choice.use == "static"
    assert choice.why == (
        "static: static loses 50 % of hard loss against float, and at most 2 % may be lost; minmax-qat trained the "
        "last 1 of 4 epochs and is no better (float 0.2, static 0.3, minmax-qat 0.4 hard loss)"
    )
    assert type(run.work("export", tmp_path / "draft").quantizer).__name__ == "Static"


def test_a_loss_that_few_labels_do_not_show_leaves_calibration(
    stages_of: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "compared", lambda *_given: Compared("top1", (0.9, 0.88), 32, 0.02, shown=False))
    choice = records(run_of(stages_of, tiny, tmp_path))[1].choice
    assert choice is not None
    assert choice.why == "static: it loses 2 points against float, which 32 labels do not show to be a loss"


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"weights": 4}, "lsq: 4 bits are too few to calibrate; it trained the last 1 of 4 epochs"),
        ({"rules": [{"match": "conv", "activations": 3}]},
         "lsq: 3 bits are too few to calibrate; it trained the last 1 of 4 epochs"),
        ({"weight_loss": 0.1}, "minmax-qat: 'weight_loss' asks for training; it trained the last 1 of 4 epochs"),
    ],
)  # fmt: skip
def test_few_bits_train_at_once_and_the_float_student_stops_before_the_tail(
    section: dict[str, Any], why: str, stages_of: Any, tiny: Any, tmp_path: Path
) -> None:
    run = run_of(stages_of, tiny, tmp_path, quantize={"fit": {"epochs": 1}, **section})
    student, quantized = records(run)
    assert (epochs(student), student.before_tail, epochs(quantized)) == ([1, 2, 3], None, [4])
    assert quantized.choice is not None
    assert (quantized.choice.why, quantized.choice.values) == (why, {})


def test_a_budget_holds_for_named_quantizers_too(stages_of: Any, tiny: Any, tmp_path: Path) -> None:
    budget = {"epochs": 4}
    quantize = {"use": "minmax-qat", "fit": {"epochs": 1}}
    trains = run_of(stages_of, tiny, tmp_path / "a", budget=budget, quantize=quantize)
    assert tuple(map(epochs, records(trains))) == ([1, 2, 3], [4])
    calibrates = run_of(stages_of, tiny, tmp_path / "b", budget=budget, quantize={"use": "static"})
    assert epochs(records(calibrates)[0]) == [1, 2, 3, 4]
    assert records(calibrates)[0].before_tail is None


class Given(nn.Module):
    """Answers that are given by the number of the sample, which is its input."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        """Logits: class 0 for the first samples, class 1 for the others."""
        hit = (x[:, 0] < self.right).float()
        return torch.stack([hit, 1 - hit], dim=1)


class Counted(Tiny):
    """A thousand samples of class 0, each with its number."""

    def batches(self, split: Any, *, batch_size: int, seed: int = 0, epoch: int = 0, view: Any = None) -> Any:
        assert split == "validation"
        for at in torch.arange(1000).split(batch_size):
            targets = None if self.labels == "none" else torch.zeros(len(at), dtype=torch.long)
            yield Batch((at[:, None].float(),), at[:, None].float() if self.numbers else targets, at)


@pytest.mark.parametrize(("right", "lost", "shown"), [(900, 0.0, False), (897, 0.003, False), (880, 0.02, True)])
def test_classes_are_compared_sample_by_sample_with_an_interval(right: int, lost: float, shown: bool) -> None:
    found = compared(Given(900), Given(right), Counted(), torch.device("cpu"))
    assert (found.metric, found.values, found.samples) == ("top1", (0.9, right / 1000), 1000)
    assert found.lost == pytest.approx(lost)
    assert found.shown is shown


def test_numbers_are_compared_by_the_hard_loss_and_no_labels_not_at_all() -> None:
    class Number(nn.Module):
        def __init__(self, off: float) -> None:
            super().__init__()
            self.off = off

        def forward(self, x: Tensor) -> Tensor:
            return x + self.off

    found = compared(Number(1.0), Number(1.1), Counted(numbers=True), torch.device("cpu"))
    assert (found.metric, found.samples, found.shown) == ("loss", 1000, True)
    assert found.lost == pytest.approx(0.21, abs=1e-3)
    nothing = compared(Given(1), Given(2), Counted(labels="none"), torch.device("cpu"))
    assert nothing == Compared("", (0.0, 0.0), 0, 0.0, shown=False)
