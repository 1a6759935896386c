"""A checkpoint that cannot be loaded says in a few words why, and how to write one that can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdq_core.errors import StageError
from kdq_core.teachers.checkpoint import load_checkpoint

OTHER = "name the 'factory' in 'teacher.members' that makes the file's own module, or another file"


def model(width: int = 3, layers: int = 2) -> nn.Module:
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(weights: dict[str, Tensor]) -> Path:
    save_file(weights, "t.safetensors")
    return Path("t.safetensors")


def refusal(path: Path) -> str:
    with pytest.raises(StageError) as caught:
        load_checkpoint(model(), path, "my:make")
    return str(caught.value)


def test_one_that_fits_is_loaded() -> None:
    given, found = model(), model()
    load_checkpoint(found, saved(given.state_dict()), "my:make")
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in given.state_dict().items())


def test_another_file_is_no_safetensors_file() -> None:
    Path("t.safetensors").write_text("nothing")
    said = refusal(Path("t.safetensors"))
    assert said.startswith("the teacher's file 't.safetensors' is no safetensors file: ")
    assert said.endswith("with safetensors.torch.save_file(model.state_dict(), 't.safetensors')")


def test_other_keys_and_shapes_are_counted_and_three_of_each_are_shown() -> None:
    weights = model(4, 1).state_dict() | {f"extra.{n}": torch.zeros(1) for n in range(5)}
    assert refusal(saved(weights)) == (
        "the weights in 't.safetensors' do not fit the module of my:make: 2 keys missing (1.weight, 1.bias), 5 keys "
        "unexpected (extra.0, extra.1, extra.2, ...), 2 keys of another shape (0.weight (4, 4) where the module has "
        f"(3, 3), 0.bias (4,) where the module has (3,)); {OTHER}"
    )


@pytest.mark.parametrize(
    ("wrapped", "told"),
    [
        ("module", "DataParallel and DistributedDataParallel name them"),
        ("_orig_mod", "torch.compile names them"),
        ("_orig_mod.module",
         "torch.compile names them and DataParallel and DistributedDataParallel name them"),
    ],
)  # fmt: skip
def test_a_wrapper_around_the_model_is_named_with_what_to_save_in_its_place(wrapped: str, told: str) -> None:
    weights = {f"{wrapped}.{name}": value for name, value in model().state_dict().items()}
    start = (
        f"the weights in 't.safetensors' do not fit the module of my:make: all its keys begin with '{wrapped}.', as "
        f"{told}"
    )
    save = f"save what is inside, with safetensors.torch.save_file(model.{wrapped}.state_dict(), 't.safetensors')"
    assert refusal(saved(weights)) == f"{start}; {save}"
    del weights[f"{wrapped}.1.bias"]
    assert refusal(saved(weights)) == f"{start}; beside that, 1 key missing (1.bias); {save}, and {OTHER}"


def test_a_module_of_the_same_name_is_no_wrapper() -> None:
    class Has(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.module = nn.Linear(width, 2)

    with pytest.raises(StageError) as caught:
        load_checkpoint(Has(3), saved(Has(4).state_dict()), "my:make")
    assert str(caught.value) == (
        "the weights in 't.safetensors' do not fit the module of my:make: 1 key of another shape (module.weight "
        f"(2, 4) where the module has (2, 3)); {OTHER}"
    )


def test_what_a_module_itself_refuses_is_told_in_its_words() -> None:
    class Refuses(nn.Linear):
        def load_state_dict(self, *_: object, **__: object) -> None:  # type: ignore[override]
            raise RuntimeError("not\n today. " + "x" * 1000)

    given = Refuses(3, 3)
    with pytest.raises(StageError) as caught:
        load_checkpoint(given, saved(given.state_dict()), "my:make")
    fact = ("not today. " + "x" * 1000)[:297]
    assert str(caught.value) == f"the weights in 't.safetensors' do not fit the module of my:make: {fact}...; {OTHER}"


def test_a_file_that_is_replaced_after_the_plan_is_not_taken_for_the_planned_one(
    stages_of: Any, tiny: Any, tmp_path: Path
) -> None:
    """What another run would find under the key of the first file would be the second."""
    teacher = tiny.build("workload", "digits", {}).teacher()
    file = saved(teacher.state_dict()).resolve()
    members = [{"source": "checkpoint", "file": str(file)}]
    run = stages_of(tmp_path / "home", tiny, workload="digits", teacher={"members": members})
    saved({name: value + 1 for name, value in teacher.state_dict().items()})
    with pytest.raises(StageError) as caught:
        run.stage("train_teacher")
    assert str(caught.value) == (
        "stage 'train_teacher' was planned with other code, files or settings than are there now "
        "(recipe.teacher.members); nothing was stored; run again: KDQ plans it with what is there now"
    )
    saved(teacher.state_dict())
    assert run.stage("train_teacher").record.slot == "teacher"
