import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdq_core.errors import StageError
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe
from kdq_core.tensors import Batch
from kdq_core.work.fitting import check_device


def test_a_gpu_that_is_not_there_is_refused_instead_of_the_cpu_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device("cpu")
    with pytest.raises(StageError) as caught:
        check_device("cuda:0")
    assert str(caught.value) == (
        f"the device 'cuda:0' was asked for, but torch {torch.__version__} sees no CUDA device here; "
        "set KDQ_DEVICE=cpu, or install a CUDA build of torch and a driver"
    )


def test_a_partly_written_fit_keeps_the_other_defaults_of_its_section() -> None:
    recipe = Recipe.model_validate({"name": "x", "workload": "digits", "quantize": {"fit": {"epochs": 7}}})
    assert recipe.quantize.fit.learning_rate == 2e-4
    assert recipe.teacher.fit.learning_rate == 2e-3


def test_variables_of_accelerate_change_no_fit(
    stages_of: Any, tiny: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(home: str) -> str:
        run = stages_of(tmp_path / home, tiny, workload="digits", teacher={"fit": {"epochs": 1, "optimizer": "sgd"}})
        return str(run.stage("train_teacher").digest)

    plain = made("plain")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert made("accumulating") == plain
    assert os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "4"


BATCH = Batch((torch.zeros(2, 1, 8, 8),), torch.zeros(2, dtype=torch.int64), torch.arange(2))
WRONG: dict[str, Any] = {
    "a 'tuple'": (BATCH.inputs, BATCH.targets),
    "a batch whose inputs are a 'list', not a tuple of tensors": replace(BATCH, inputs=list(BATCH.inputs)),
    "a batch whose inputs are a 'Tensor', not a tuple of tensors": replace(BATCH, inputs=BATCH.inputs[0]),
    "a batch whose ids are a 'NoneType', not a tensor": replace(BATCH, ids=None),
    "a batch whose ids are a 'ndarray', not a tensor": replace(BATCH, ids=np.arange(2)),
    "a batch with tensors on 'meta', not on the CPU": replace(BATCH, inputs=(torch.zeros(2, device="meta"),)),
}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_workload_that_gives_no_batches_is_told_what_it_must_give(
    stages_of: Any, tiny: Catalog, installed: Any, tmp_path: Path, wrong: str, split: str
) -> None:
    base: Any = type(tiny.build("workload", "digits", {}))

    class Odd(base):  # type: ignore[misc]
        def batches(self, of: Any, **asked: Any) -> Any:
            return iter([WRONG[wrong]]) if of == split else super().batches(of, **asked)

    with pytest.raises(StageError) as caught:
        stages_of(tmp_path, installed(Odd), workload="digits").stage("train_teacher")
    assert str(caught.value) == (
        f"the workload's batches({split!r}) gave {wrong}; it must give Batch(inputs=(tensor, ...), targets=tensor or "
        "None, ids=tensor of sample numbers) of kdq_core.api"
    )


@pytest.mark.parametrize("gives", ["a tensor of shape (2,)", "a 'NoneType'"])
def test_a_workload_whose_loss_is_no_scalar_is_told_what_it_must_give(
    stages_of: Any, tiny: Catalog, installed: Any, tmp_path: Path, gives: str
) -> None:
    base: Any = type(tiny.build("workload", "digits", {}))

    class Odd(base):  # type: ignore[misc]
        def loss(self, outputs: Any, batch: Any) -> Any:
            return outputs.logits.mean(1) if "tensor" in gives else None

    with pytest.raises(StageError) as caught:
        stages_of(tmp_path, installed(Odd), workload="digits").stage("train_teacher")
    assert str(caught.value) == (
        f"the workload's loss() gave {gives}; it must give one scalar tensor, the mean over the samples of the batch"
    )


CLASSES = ("logit-kd", "dist", "hard-label", "logistic", {"use": "mse-logits", "options": {"on": "probabilities"}})


@pytest.mark.parametrize(
    "use",
    [*CLASSES, "mse-logits", "regression-kd", "multi-label-kd", {"use": "logit-kd", "options": {"alpha": 0}}],
    ids=str,
)
def test_a_distiller_of_classes_is_refused_where_there_is_one_number_a_sample(
    stages_of: Any, tiny: Catalog, tmp_path: Path, use: Any
) -> None:
    run = stages_of(
        tmp_path, tiny, workload={"use": "digits", "options": {"numbers": True}},
        teacher={"fit": {"epochs": 1}}, distill={"losses": [use]},
    )  # fmt: skip
    if use not in CLASSES:
        assert run.stage("train_teacher")
        return
    with pytest.raises(StageError) as caught:
        run.stage("train_teacher")
    name = use if isinstance(use, str) else use["use"]
    assert str(caught.value) == (
        f"distiller {name!r} learns nothing from outputs of shape (2, 1): it compares classes, and one number per "
        "sample has no classes; use a distiller of numbers, such as 'regression-kd', or of independent labels, such as "
        "'multi-label-kd'"
    )
