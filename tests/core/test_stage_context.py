import pytest
import torch

from kdq_core.errors import StageError
from kdq_core.spec import Recipe
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
