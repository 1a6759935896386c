"""A factory that makes no module is told what it did, and what it must do."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdq_core.errors import StageError, UnforeseenError
from kdq_core.recipe.teacher import MemberSpec
from kdq_core.teachers.members import empty_member, read_member
from kdq_core.worker.main import named
from kdq_workloads.digits import Digits

MUST = "'factory' in 'teacher.members' names a function that takes no argument and returns a torch.nn.Module"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], nn.Module]:
    """Makes the module of a factory `make` in a module `my_nets` of the given source."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(source: str) -> nn.Module:
        (tmp_path / "my_nets.py").write_text(source)
        sys.modules.pop("my_nets", None)
        return empty_member(MemberSpec(source="checkpoint", file="x", factory="my_nets:make"), Digits())

    yield make  # type: ignore[misc]
    sys.modules.pop("my_nets", None)


def test_a_checkpoint_is_loaded_into_what_its_factory_makes(made: Callable[[str], nn.Module], tmp_path: Path) -> None:
    model, x = made("from torch import nn\ndef make():\n    return nn.Linear(4, 2)"), torch.randn(3, 4)
    save_file(model.state_dict(), tmp_path / "t.safetensors")
    member = MemberSpec(source="checkpoint", file=str(tmp_path / "t.safetensors"), factory="my_nets:make")
    assert torch.equal(read_member(member, Digits())(x), model(x))


@pytest.mark.parametrize(
    ("source", "did"),
    [
        ("def make():\n    return {}", "gave a 'dict'"),
        ("def make():\n    pass", "gave a 'NoneType'"),
        ("from torch import nn\ndef make():\n    return nn.Linear", "gave a 'type'"),
        (
            "def make(width, depth=3):\n    pass",
            "cannot be called without arguments: missing a required argument: 'width'",
        ),
        (
            "from torch.nn import Linear as make",
            "cannot be called without arguments: missing a required argument: 'in_features'",
        ),
        ("make = 3", "is a 'int'"),
        ("from torch import nn\nmake = nn.Linear(4, 2)", "is a 'Linear'"),
    ],
)
def test_a_factory_that_gives_no_module(made: Callable[[str], nn.Module], source: str, did: str) -> None:
    with pytest.raises(StageError) as caught:
        made(source)
    assert str(caught.value) == f"the teacher's factory 'my_nets:make' {did}; {MUST}"


def test_a_factory_that_is_not_there_is_named() -> None:
    with pytest.raises(StageError) as caught:
        empty_member(MemberSpec(source="checkpoint", file="x", factory="json:make_it"), Digits())
    assert str(caught.value) == (
        "the teacher's factory 'json:make_it' cannot be loaded: module 'json' has no attribute 'make_it'; install its "
        "package, put its folder on PYTHONPATH, or correct 'factory' in 'teacher.members'"
    )


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("def make():\n    return open('/no/such/file')", 2,
         "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"),
        ("import json\ndef make():\n    json.loads('{')", 3,
         "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("def make():\n    return inside(1)\ndef inside():\n    pass", 2,
         "TypeError: inside() takes 0 positional arguments but 1 was given"),
        ("\nwidth = 1 / 0", 2, "ZeroDivisionError: division by zero"),
    ],
)  # fmt: skip
def test_a_mistake_inside_a_factory_is_told_with_its_line(
    made: Callable[[str], nn.Module], tmp_path: Path, source: str, line: int, error: str
) -> None:
    with pytest.raises((OSError, ValueError, TypeError, ZeroDivisionError)) as caught:
        made(source)
    told = named(caught.value)
    assert type(told) is UnforeseenError
    assert str(told) == (
        f"{error} (in {tmp_path / 'my_nets.py'}:{line}); the teacher's factory 'my_nets:make' ('factory' in "
        "'teacher.members') raised it"
    )
