"""`kdq bench` compares two ONNX files, and refuses what cannot be compared."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdq_core.errors import RecipeError
from kdq_core.store.records import TensorSpec
from kdq_flows.bench import Bench, bench
from kdq_flows.bench_inputs import common_inputs, made, read
from kdq_flows.cli.bench import line_of

FAST = ["--seconds", "0.05"]


def write(path: Path, shape: list[Any], layers: int = 1, name: str = "x", dtype: int = TensorProto.FLOAT) -> Path:
    """An ONNX file of `layers` products with a matrix of 64 columns; of no layers, one that gives its input."""
    tensors = [helper.make_tensor("w", TensorProto.FLOAT, [64, 64], np.eye(64, dtype=np.float32).ravel())]
    names = [name, *(f"y{n}" for n in range(layers))]
    nodes = [helper.make_node("MatMul", [one, "w"], [other]) for one, other in itertools.pairwise(names)]
    nodes += [helper.make_node("Identity", [names[-1]], ["out"])]
    given, found = (helper.make_tensor_value_info(one, dtype, shape) for one in (name, "out"))
    graph = helper.make_graph(nodes, "g", [given], [found], tensors if layers else [])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "one.onnx", ["N", 64]), write(tmp_path / "ten.onnx", ["N", 64], layers=40)


def test_the_verdict_is_of_the_second_file_against_the_first(files: tuple[Path, Path], call: Any) -> None:
    one, ten = map(str, files)
    code, told, _ = call("bench", one, ten, "--batch", "64", "--json", *FAST)
    found = json.loads(told)
    assert code == 0
    assert list(found)[:4] == ["ratio", "low", "high", "verdict"]
    assert found["low"] <= found["ratio"] <= found["high"] < 1
    assert (found["verdict"], found["confidence"], found["threads"]) == ("slower", 0.99, 1)
    assert [at["batch"] for at in found["batches"]] == [64]
    assert [file["file"] for file in found["batches"][0]["files"]] == [one, ten]
    code, told, _ = call("bench", ten, one, "--batch", "64", "--json", *FAST)
    assert json.loads(told)["verdict"] == "faster"
    assert json.loads(told)["low"] > 1


def test_a_file_is_not_faster_than_itself(files: tuple[Path, Path]) -> None:
    found = [bench(files[1], files[1], seconds=0.1, seed=seed).verdict for seed in range(4)]
    assert found.count("no difference") >= 3


def test_several_batch_sizes_are_told_in_a_table_and_in_words(files: tuple[Path, Path], call: Any) -> None:
    _, told, _ = call("bench", *map(str, files), "--batch", "32", "--batch", "64", "--threads", "2", *FAST)
    assert told.startswith("onnxruntime-cpu, threads: 2\n")
    assert [word for word in ("p50 ms", "p95 ms", "p99 ms", "samples/s") if word not in told] == []
    assert "batch 32: " in told
    assert f"batch 64: {files[1]} is slower than {files[0]}, 0." in told


def test_no_difference_is_told_in_words(files: tuple[Path, Path]) -> None:
    found = (
        bench(*files, seconds=0.02)
        .batches[0]
        .model_copy(update={"verdict": "no difference", "ratio": 1.0, "low": 0.97, "high": 1.031})
    )
    assert line_of(found) == (
        f"batch 1: no difference shown between {files[1]} and {files[0]}, 1 times the speed (0.97 to 1.03)"
    )


def test_openvino_is_asked_by_its_name(files: tuple[Path, Path]) -> None:
    assert bench(*files, batches=[64], seconds=0.02, target="openvino").target == "openvino"


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda _: None, ["none.onnx", "none.onnx"], "no file 'none.onnx'; check the path"),
        (
            lambda folder: (folder / "text.onnx").write_text("hello"), ["text.onnx", "text.onnx"],
            "ONNX Runtime cannot load 'text.onnx': ",
        ),
        (
            lambda folder: (write(folder / "a.onnx", ["N", 64]), write(folder / "b.onnx", ["N", 32], 0)),
            ["a.onnx", "b.onnx"],
            "the files take different inputs, so one measurement cannot compare them: 'a.onnx' takes x float32[free, "
            "64]; 'b.onnx' takes x float32[free, 32]; give two files of one model",
        ),
        (
            lambda folder: write(folder / "a.onnx", [2, 64]), ["a.onnx", "a.onnx", "--batch", "3"],
            "--batch 3 does not fit: the first axis of input 'x' is fixed to 2; leave --batch out, or export the files "
            "with a free first axis",
        ),
        (
            lambda folder: write(folder / "a.onnx", ["N", 64]), ["a.onnx", "a.onnx", "--inputs", "none.npz"],
            "no file 'none.npz' with inputs; check the path",
        ),
        (
            lambda folder: (write(folder / "a.onnx", ["N", 64]), (folder / "x.npz").write_text("hello")),
            ["a.onnx", "a.onnx", "--inputs", "x.npz"],
            "'x.npz' is no npz file of arrays; write one with numpy.savez",
        ),
        (
            lambda folder: (write(folder / "a.onnx", ["N", 64]), np.savez(folder / "x.npz", y=np.zeros(3))),
            ["a.onnx", "a.onnx", "--inputs", "x.npz"],
            "'x.npz' has no array 'x', which the files take as input; it has: y",
        ),
        (
            lambda folder: (write(folder / "a.onnx", ["N", 64]), np.savez(folder / "x.npz", x=np.zeros((3, 64)))),
            ["a.onnx", "a.onnx", "--inputs", "x.npz"],
            "array 'x' of 'x.npz' is float64[3, 64], and the files take float32[free, 64]; write it with that type "
            "and shape",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_a_wrong_request(
    make: Callable[[Path], Any], arguments: list[str], message: str, tmp_path: Path, call: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    code, _, told = call("bench", *arguments)
    assert code == 2
    assert told.startswith(f"error: {message}")
    if "text.onnx" in arguments:
        assert told.endswith("; give an ONNX file that the target 'onnxruntime-cpu' can load\n")


def test_a_batch_below_1_is_refused_by_the_command_line(files: tuple[Path, Path], call: Any) -> None:
    code, _, told = call("bench", *map(str, files), "--batch", "0")
    assert code == 2
    assert "greater than or equal to 1" in told


def spec(shape: tuple[int, ...], dtype: str = "float32", name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def test_an_axis_that_one_file_fixes_is_fixed() -> None:
    (found,) = common_inputs(("a", (spec((-1, 3, -1)),)), ("b", (spec((-1, -1, 5), name="y"),)))
    assert found == spec((-1, 3, 5))
    with pytest.raises(RecipeError, match="'a' takes none; 'b' takes x float32"):
        common_inputs(("a", ()), ("b", (spec((1,)),)))


def test_made_inputs_have_the_described_type_and_shape() -> None:
    floats, integers, switch, scalar = made(
        (spec((-1, 3, -1)), spec((-1, 4), "int64"), spec((2,), "bool"), spec(())), batch=6, seed=0
    )
    assert (floats.shape, floats.dtype) == ((6, 3, 1), np.float32)
    assert (integers.shape, integers.dtype, set(integers.ravel())) == ((6, 4), np.int64, {0, 1})
    assert (switch.shape, switch.dtype, scalar.shape) == ((2,), np.bool_, ())
    assert floats.std() > 0.5


def test_given_inputs_are_repeated_up_to_the_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(6, dtype=np.float32).reshape(3, 2))
    (found,) = read(tmp_path / "x.npz", (spec((-1, 2)),), batch=4)
    assert found.tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]


def test_a_bench_is_the_same_after_json() -> None:
    fields: dict[str, Any] = {"ratio": 1.0, "low": 0.9, "high": 1.1, "verdict": "no difference"}
    found = Bench.model_validate({**fields, "target": "t", "threads": 1, "batches": []})
    assert Bench.model_validate_json(found.model_dump_json()) == found
