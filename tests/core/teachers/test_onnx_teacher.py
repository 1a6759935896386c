"""A teacher that is an ONNX file, and what may be wrong with one."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import nn

from kdq_core.errors import StageError
from kdq_core.recipe.spec import TeacherSpec
from kdq_core.recipe.teacher import MemberSpec
from kdq_core.teachers.members import empty_member, read_member, whole
from kdq_workloads.digits import Digits


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


def member(file: Path) -> MemberSpec:
    return MemberSpec(source="onnx", file=str(file))


def exported(path: Path, model: nn.Module, *, external_data: bool = False, free: bool = True) -> Path:
    dynamic = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if free else {}
    torch.onnx.export(
        model, (torch.zeros(2, 1, 8, 8),), str(path), dynamo=True, **dynamic, verbose=False,
        external_data=external_data,
    )  # type: ignore[call-overload]  # fmt: skip
    return path


def written(path: Path, shape: tuple[Any, ...], inner: tuple[int, ...] = (-1, 64)) -> Path:
    """A file by hand, with an input of `shape` that is reshaped to `inner`."""
    weights = {"w": np.ones((64, 5), np.float32), "inner": np.array(inner)}
    nodes = [helper.make_node("Reshape", ["x", "inner"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["l"])]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)]
        for name, sizes in (("x", shape), ("l", (shape[0], 5)))
    ]
    kept = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "teacher", *ends, initializer=kept)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.isa
@pytest.mark.filterwarnings("ignore")
def test_it_answers_like_the_module_it_was_made_from(tmp_path: Path, model: nn.Module) -> None:
    x = torch.randn(5, 1, 8, 8)
    spec = TeacherSpec(members=(member(exported(tmp_path / "t.onnx", model)),) * 2)
    read = whole(spec, [read_member(one, Digits()) for one in spec.members])
    torch.testing.assert_close(read(x), model(x), rtol=1e-5, atol=1e-6)
    save_file({k: v.clone() for k, v in read.state_dict().items()}, tmp_path / "kept.safetensors")
    again = whole(spec, [empty_member(one, Digits()) for one in spec.members])
    again.load_state_dict(load_file(tmp_path / "kept.safetensors"))
    assert torch.equal(again(x), read(x))
    with pytest.raises(StageError, match=r"the ONNX teacher '.*t.onnx' takes 1 inputs \(.*\), the workload gives 2"):
        read.members[0](x, x)  # type: ignore[index, operator]


def test_a_copy_of_one_that_is_open_answers_alike(tmp_path: Path) -> None:
    teacher, x = read_member(member(written(tmp_path / "t.onnx", ("batch", 1, 8, 8))), Digits()), torch.rand(3, 1, 8, 8)
    assert torch.equal(copy.deepcopy(teacher)(x), teacher(x))


def test_a_file_that_is_no_onnx_model_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "junk.onnx"
    path.write_text("nothing")
    with pytest.raises(StageError) as caught:
        read_member(member(path), Digits())
    assert str(caught.value).startswith(f"ONNX Runtime cannot read the ONNX teacher {str(path)!r}: ")
    assert str(caught.value).endswith(" failed; name an ONNX model in 'teacher.members'")


def test_a_file_in_float64_that_the_runtime_has_no_operator_for_says_so(tmp_path: Path) -> None:
    path, double = tmp_path / "t.onnx", TensorProto.DOUBLE
    ends = [[helper.make_tensor_value_info(name, double, ("batch", 1, 8, 8))] for name in ("x", "y")]
    kernel = [numpy_helper.from_array(np.ones((1, 1, 1, 1)), "w")]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "teacher", *ends, initializer=kernel)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(StageError) as caught:
        read_member(member(path), Digits())
    assert str(caught.value).startswith(f"ONNX Runtime cannot read the ONNX teacher {str(path)!r}: ")
    assert str(caught.value).endswith(
        "; it has no such operator for that type of number, as often for float64: export it in float32"
    )


@pytest.mark.filterwarnings("ignore")
def test_weights_beside_the_file_are_not_read(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # here ONNX Runtime would find them
    file = exported(Path("t.onnx"), model, external_data=True)
    assert Path("t.onnx.data").is_file()
    with pytest.raises(StageError) as caught:
        read_member(member(file), Digits())
    assert str(caught.value) == (
        "the ONNX teacher 't.onnx' has its weights in a file beside it, which is not read; export it with "
        "torch.onnx.export(..., external_data=False), or put them into one file with onnx.save(onnx.load(FILE), FILE)"
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_a_file_for_one_size_of_batch_is_refused_when_it_is_read(tmp_path: Path, batch: int) -> None:
    with pytest.raises(StageError) as caught:
        read_member(member(written(tmp_path / "t.onnx", (batch, 1, 8, 8))), Digits())
    assert str(caught.value) == (
        f"the ONNX teacher {str(tmp_path / 't.onnx')!r} was exported for batches of {batch} alone: its input 'x' has "
        f"the shape [{batch}, 1, 8, 8]; export it with a free batch size, such as torch.onnx.export(..., "
        "dynamic_shapes=({0: torch.export.Dim('batch')},))"
    )


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_torch_exported_without_a_free_batch_is_refused(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(StageError, match=r"was exported for batches of 2 alone: its input .* \[2, 1, 8, 8\]; export"):
        read_member(member(exported(tmp_path / "t.onnx", model, free=False)), Digits())


@pytest.mark.parametrize("given", [(3, 3, 8, 8), (3, 1, 8)])
def test_inputs_of_another_shape_are_told_with_both_shapes(tmp_path: Path, given: tuple[int, ...]) -> None:
    teacher = read_member(member(written(tmp_path / "t.onnx", ("batch", 1, 8, 8))), Digits())
    with pytest.raises(StageError) as caught:
        teacher(torch.zeros(given))
    assert str(caught.value) == (
        f"the ONNX teacher {str(tmp_path / 't.onnx')!r} takes 'x' of the shape [batch, 1, 8, 8], the workload gives "
        f"{list(given)}; name a model for what the workload gives, or the inputs that this one reads as "
        "'inputs' in 'teacher.members'"
    )


@pytest.mark.parametrize(
    ("inner", "x", "told"),
    [
        ((2, 64), torch.zeros(3, 1, 8, 8), "; if it works for one size of batch alone, export it with a free one"),
        ((-1, 64), torch.zeros(3, 1, 8, 8, dtype=torch.float64),
         "; export it for the type of number that the workload gives, or let the workload give the model's"),
    ],
)  # fmt: skip
def test_what_the_runtime_says_is_one_paragraph(
    tmp_path: Path, inner: tuple[int, ...], x: torch.Tensor, told: str
) -> None:
    teacher = read_member(member(written(tmp_path / "t.onnx", ("batch", 1, 8, 8), inner)), Digits())
    with pytest.raises(StageError) as caught:
        teacher(x)
    text = str(caught.value)
    assert text.startswith(f"ONNX Runtime cannot run the ONNX teacher {str(tmp_path / 't.onnx')!r}: [ONNXRuntimeError]")
    assert text.endswith(told)
    assert "\n" not in text
