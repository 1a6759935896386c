"""Data that torch would refuse with an error of its own: KDQ names the split, the sample and the layer, early."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdq_core.errors import RecipeError, StageError
from kdq_core.plugins.catalog import Catalog
from kdq_core.tensors import Batch, Outputs
from kdq_core.training.losses import loss_of

FIT = {"epochs": 1, "batch_size": 32}


def normed() -> nn.Module:
    layers = {"flat": nn.Flatten(), "body": nn.Linear(64, 8), "norm": nn.BatchNorm1d(8), "head": nn.Linear(8, 3)}
    return nn.Sequential(OrderedDict(layers))


@pytest.fixture
def changed(tiny: Catalog, installed: Any) -> Any:
    """Gives a function: changes of a batch by split, and a student -> the catalog with such a tiny workload."""
    base: Any = type(tiny.build("workload", "digits", {}))

    def catalog(split: str = "", change: Any = None, student: Any = None) -> Catalog:
        class Changed(base):  # type: ignore[misc]
            def student(self) -> nn.Module:
                return student() if student else super().student()

            def batches(self, at: Any, **asked: Any) -> Any:
                for batch in super().batches(at, **asked):
                    yield change(batch) if at == split else batch

        return installed(Changed)

    return catalog


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_inputs_of_another_float_type_are_refused_before_the_first_fit(
    stages_of: Any, changed: Any, tmp_path: Path, split: str, dtype: str
) -> None:
    wide = changed(split, lambda batch: replace(batch, inputs=(batch.inputs[0].to(getattr(torch, dtype)),)))
    run = stages_of(tmp_path, wide, workload="digits", teacher={"fit": FIT}, distill={"fit": FIT})
    with pytest.raises(StageError) as caught:
        run.stage("train_teacher")
    assert str(caught.value) == (
        f"the workload's batches({split!r}) gave floats of type {dtype!r} as its input, but models and files take "
        "'float32'; give x.float()"
    )


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_label_that_is_no_class_is_told_with_its_sample(
    stages_of: Any, changed: Any, tmp_path: Path, split: str
) -> None:
    def mislabelled(batch: Batch) -> Batch:
        assert batch.targets is not None
        return replace(batch, targets=batch.targets.masked_fill(batch.ids == 5, 7))

    run = stages_of(tmp_path, changed(split, mislabelled), workload="digits", teacher={"fit": FIT})
    with pytest.raises(StageError) as caught:
        run.stage("train_teacher")
    assert str(caught.value) == (
        f"sample 5 of the split {split!r} has the label 7, but the model gives 3 classes, 0 to 2; mend the labels, or "
        "let the model give more classes (-100 marks a missing label)"
    )


def test_a_label_of_a_token_that_is_no_class_is_told(tiny: Catalog) -> None:
    workload: Any = tiny.build("workload", "digits", {})
    labels = torch.tensor([[0, 2], [1, 9]])
    batch = Batch(inputs=(torch.zeros(2, 2),), targets=labels, ids=torch.tensor([4, 5]))
    with pytest.raises(
        StageError, match=r"^sample 5 of the split 'train' has the label 9, but the model gives 3 classes, "
    ):
        loss_of(workload, Outputs(torch.zeros(2, 2, 3)), batch)


def test_another_error_of_a_loss_stays_as_it_is(tiny: Catalog) -> None:
    workload: Any = tiny.build("workload", "digits", {})
    batch = Batch((torch.zeros(2, 1),), torch.tensor([0.0, 1.0]), torch.arange(2))
    with pytest.raises(RuntimeError) as caught:
        loss_of(workload, Outputs(logits=torch.zeros(2, 3)), batch)
    assert not isinstance(caught.value, StageError)


@pytest.mark.parametrize("stage", ["distill", "quantize", "train_teacher"])
def test_a_last_batch_of_one_sample_before_a_batch_norm_is_refused_before_the_first_fit(
    stages_of: Any, changed: Any, tmp_path: Path, stage: str
) -> None:
    fits = {name: {"fit": {**FIT, "batch_size": 19 if name == stage else 32}} for name in ("distill", "quantize")}
    teacher = {"members": [{"source": "student"}], "fit": {**FIT, "batch_size": 19 if stage == "train_teacher" else 32}}
    fits["quantize"] |= {"use": "minmax-qat"}
    run = stages_of(tmp_path, changed(student=normed), workload="digits", teacher=teacher, **fits)
    with pytest.raises(RecipeError) as caught:
        run.stage("train_teacher")
    assert str(caught.value) == (
        f"the 'fit' of stage {stage!r} asks for batches of 19 samples, which leaves 1 of the 96 training samples for "
        f"the last batch; batch norm 'norm' cannot learn from one value a channel; choose "
        "another 'batch_size', or let the workload drop that batch"
    )


def test_a_last_batch_that_the_workload_drops_is_no_reason(
    stages_of: Any, changed: Any, installed: Any, tmp_path: Path
) -> None:
    base: Any = type(changed(student=normed).build("workload", "digits", {}))

    class Dropping(base):  # type: ignore[misc]
        def batches(self, at: Any, **asked: Any) -> Any:
            return (batch for batch in super().batches(at, **asked) if len(batch.ids) > 1)

        def samples(self, split: Any) -> int:
            return {"train": 96, "validation": 32, "test": 64}[split]

    distill = {"fit": {**FIT, "batch_size": 19}}
    run = stages_of(tmp_path, installed(Dropping), workload="digits", teacher={"fit": FIT}, distill=distill)
    assert run.stage("train_teacher").record.history


class Scaled(nn.Module):
    """Divides each image by its sum of absolute values: an image of zeros gives NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return torch.as_tensor(self.head(x / x.abs().sum(1, keepdim=True)))


def blank(batch: Batch) -> Batch:
    """The same batch; the image of sample 7 is zeros."""
    kept = (batch.ids != 7).reshape(-1, 1, 1, 1)
    return replace(batch, inputs=(batch.inputs[0] * kept,))


def test_a_training_sample_for_which_the_student_gives_nan_is_named_while_kdq_calibrates(
    stages_of: Any, changed: Any, tmp_path: Path
) -> None:
    save_file(Scaled().state_dict(), tmp_path / "net.safetensors")
    student = {"source": "checkpoint", "file": str(tmp_path / "net.safetensors")}
    run = stages_of(
        tmp_path / "home", changed("train", blank, Scaled), workload="digits", student=student,
        quantize={"use": "static", "calibration_batch_size": 96}, stages=["quantize"],
    )  # fmt: skip
    run.stage("read_student")
    with pytest.raises(StageError) as caught:
        run.stage("quantize")
    assert str(caught.value) == (
        "the student gives NaN or infinity for 1 of 96 samples of the split 'train', first for sample 7; let the model "
        "answer for such a sample, for instance a sentence whose mask is all zero, or drop it from the data"
    )
