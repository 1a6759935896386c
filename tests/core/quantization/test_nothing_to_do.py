"""A refinement that finds nothing in the student is refused: the user expects something of it."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from kdq_core.errors import StageError
from tests.core.conftest import Tiny


class Kept(nn.BatchNorm1d):
    """A batch norm that stays in eval mode."""

    def train(self, mode: bool = True) -> "Kept":
        super().train(False)
        return self


class Lone(Tiny):
    """Its student is a single layer without a bias."""

    def student(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False))


class Frozen(Tiny):
    """Its student has a batch norm that does not train."""

    def student(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Kept(3))


@pytest.mark.parametrize(
    ("workload", "option", "wanted"),
    [
        (Lone, "equalize", "two layers in a row with nothing between them but relu"),
        (Lone, "bias_correction", "a quantized layer with a bias, or a batch norm behind it"),
        (Lone, "reestimate_batch_norm", "a batch norm that trains"),
        (Frozen, "reestimate_batch_norm", "a batch norm that trains"),
    ],
)
def test_a_refinement_that_finds_nothing_is_refused(
    stages_of: Any, installed: Any, tmp_path: Path, workload: type[Tiny], option: str, wanted: str
) -> None:
    fit = {"fit": {"epochs": 1}}
    run = stages_of(
        tmp_path, installed(workload), workload={"use": "digits"}, teacher=fit, distill=fit,
        quantize={"use": "static", option: True},
    )  # fmt: skip
    for name in ("train_teacher", "cache_teacher", "distill"):
        run.stage(name)
    with pytest.raises(StageError) as caught:
        run.stage("quantize")
    assert str(caught.value) == (
        f"'quantize.{option}' finds nothing to do: the student does not have {wanted}; leave it out"
    )
