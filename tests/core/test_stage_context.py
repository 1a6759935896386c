import os
from pathlib import Path
from typing import Any

import pytest
import torch

from kdq_core.catalog import Catalog
from kdq_core.errors import StageError
from kdq_core.spec import Recipe, Site
from kdq_core.stages.context import check_device


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


def test_fits_in_float_are_in_the_precision_of_the_site_and_qat_is_not(
    stages_of: Any, tiny: Catalog, tmp_path: Path
) -> None:
    run = stages_of(tmp_path, tiny, workload="digits")
    run.entries = dict.fromkeys(("train_teacher", "cache_teacher", "distill"))
    for device, found in (("cuda", ["bf16", "bf16", "no"]), ("cpu", ["no", "no", "no"])):
        run.site = Site(home=tmp_path, device=device, precision="bf16")
        stages = ("train_teacher", "distill", "quantize")
        assert [run.context(name, tmp_path).mixed_precision for name in stages] == found
