"""Inputs with names of their own, and axes whose size changes from batch to batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from kdq_core.errors import RecipeError, StageError
from kdq_core.plugins.catalog import Catalog
from kdq_core.store.records import Artifact, EvaluationReport
from kdq_core.work.data import check_shapes, two_samples

MODULE = """
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens, mask):
        x = torch.relu(self.hidden(self.embed(tokens))) * mask.unsqueeze(-1)
        return self.head(x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))

class Fixed(Net):
    def forward(self, tokens, mask):
        return super().forward(tokens, mask) + tokens.reshape(-1, 4)[:1, :3]

def sentences(split):
    numbers = np.random.default_rng(len(split))
    for extra in range(3):
        tokens = torch.tensor(numbers.integers(0, 20, (8, 4 + extra)))
        yield {"mask": torch.ones(tokens.shape), "tokens": tokens, "label": tokens.sum(1) % 3}

def padded(items):
    tokens = nn.utils.rnn.pad_sequence([torch.tensor(words) for words, _ in items], batch_first=True)
    label = torch.tensor([label for _, label in items])
    return {"mask": (tokens > 0).float(), "tokens": tokens, "label": label}

def loader(split):
    numbers = np.random.default_rng(len(split))
    words = [numbers.integers(1, 20, length).tolist() for length in numbers.integers(2, 9, 48)]
    return torch.utils.data.DataLoader([(one, one[0] % 3) for one in words], collate_fn=padded)
"""
FREE = {"tokens": [1], "mask": [1]}


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The module's file in the folder that the test runs in, and weights of its model."""
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)
    name = f"text_of_{tmp_path.name}".replace("-", "_")
    Path(f"{name}.py").write_text(MODULE)
    torch.manual_seed(1)
    weights = {"embed.weight": (20, 8), "hidden.weight": (16, 8), "hidden.bias": 16, "head.weight": (3, 16)}
    save_file(
        {key: torch.randn(size) for key, size in weights.items()} | {"head.bias": torch.zeros(3)}, "net.safetensors"
    )
    yield f"{name}.py"
    sys.path[:] = path
    sys.modules.pop(name, None)


def options(name: str, model: str = "Net", **more: Any) -> dict[str, Any]:
    return {"model": f"{name}:{model}", "data": f"{name}:sentences", "dynamic": FREE, **more}


def workload(name: str, **more: Any) -> Any:
    return Catalog.load().build("workload", "python", options(name, **more))


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino"])
def test_a_file_keeps_the_names_of_inputs_and_takes_every_length(
    target: str, stages_of: Any, name: str, tmp_path: Path
) -> None:
    run = stages_of(
        tmp_path / "home", workload={"use": "python", "options": options(name)}, target=target,
        student={"source": "checkpoint", "file": "net.safetensors"}, quantize={"use": "static"},
        evaluate=["quality", "parity"], stages=["quantize", "export", "evaluate"],
    )  # fmt: skip
    for title in ("read_student", "quantize", "export", "evaluate"):
        entry = run.stage(title)
    record = run.entries["export"].record
    assert isinstance(record, Artifact)
    assert [spec.name for spec in record.inputs] == ["mask", "tokens"]
    assert {metric.name: metric.value for metric in entry.record.models["int8"]}["parity_flips"] == 0
    assert isinstance(entry.record, EvaluationReport)
    session = onnxruntime.InferenceSession(run.entries["export"].file("student.onnx"))
    for length in (3, 9):
        tokens = np.arange(2 * length).reshape(2, length) % 20
        (logits,) = session.run(None, {"tokens": tokens, "mask": np.ones((2, length), np.float32)})
        model = run.work("quantize", tmp_path).model("student")
        with torch.no_grad():
            expected = model(torch.ones(2, length), torch.tensor(tokens)).numpy()
        assert np.abs(logits - expected).max() < 1e-5


def test_batches_of_two_shapes_are_refused_before_training_unless_the_axis_is_free(name: str) -> None:
    check_shapes(workload(name))
    with pytest.raises(StageError) as caught:
        check_shapes(workload(name, dynamic={"tokens": [1]}))
    assert str(caught.value) == (
        "input 'mask' has batches of two shapes: (8, 4) in 'validation' and (8, 5) in 'train'; KDQ traces the model "
        "with one size of axis 1: pad every batch to the same size, or free the axis, which the workloads for own "
        "models do by dynamic: {mask: [1]}"
    )


def test_a_collate_that_pads_each_batch_is_refused_by_the_first_stage_and_trains_with_free_axes(
    stages_of: Any, name: str, tmp_path: Path
) -> None:
    fit = {"fit": {"epochs": 1, "batch_size": 16}}
    chain = {"teacher": fit, "distill": fit, "quantize": fit, "evaluate": ["parity"]}
    given = options(name, data=f"{name}:loader", teacher=f"{name}:Net")
    fixed = {"use": "python", "options": {**given, "dynamic": {}}}
    with pytest.raises(StageError) as caught:
        stages_of(tmp_path / "fixed", workload=fixed, **chain).stage("train_teacher")
    assert str(caught.value).startswith("input 'mask' has batches of two shapes: ")
    assert str(caught.value).endswith("which the workloads for own models do by dynamic: {mask: [1]}")
    run = stages_of(tmp_path / "free", workload={"use": "python", "options": given}, **chain)
    for title in ("train_teacher", "cache_teacher", "distill", "quantize", "export", "evaluate"):
        entry = run.stage(title)
    assert [spec.shape for spec in run.entries["export"].record.inputs] == [(-1, -1), (-1, -1)]
    assert {metric.name: metric.value for metric in entry.record.models["int8"]}["parity_flips"] == 0


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"words": [1]},
         "the workload frees axes of the input 'words', which its batches do not have; they have: mask, tokens"),
        ({"tokens": [2]},
         "the workload frees axis 2 of the input 'tokens', whose shape is (8, 4); name an axis from 1 to 1"),
        ({"tokens": [0]},
         "the workload frees axis 0 of the input 'tokens', whose shape is (8, 4); name an axis from 1 to 1"),
    ],
)  # fmt: skip
def test_a_free_axis_that_is_not_there_is_refused(dynamic: dict[str, list[int]], message: str, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        two_samples(workload(name, dynamic=dynamic))
    assert str(caught.value) == message


def test_a_model_of_one_length_says_so_when_the_axis_is_freed(stages_of: Any, name: str, tmp_path: Path) -> None:
    run = stages_of(
        tmp_path / "home", workload={"use": "python", "options": options(name, "Fixed")},
        student={"source": "checkpoint", "file": "net.safetensors"}, quantize={"use": "static"},
        stages=["quantize", "export"],
    )  # fmt: skip
    with pytest.raises(StageError) as caught:
        run.stage("read_student")
    assert "it works only with the size 4 of axis 1, which the workload frees; take sizes from x.shape" in str(
        caught.value
    )


def test_inputs_without_names_get_those_of_forward_and_a_module_of_torch_keeps_the_usual_one(name: str) -> None:
    Path(name).write_text(
        MODULE
        + """
def pairs(split):
    return torch.ones(4, 5), torch.zeros(4, 5, dtype=torch.int64), torch.zeros(4)

def one(split):
    return torch.ones(4, 8), torch.zeros(4)

def plain():
    return nn.Sequential(nn.Linear(8, 3))
"""
    )
    by_forward = Catalog.load().build("workload", "python", {"model": f"{name}:Net", "data": f"{name}:pairs"})
    usual = Catalog.load().build("workload", "python", {"model": f"{name}:plain", "data": f"{name}:one"})
    examples: list[Any] = [two_samples(one).inputs for one in (by_forward, usual)]  # type: ignore[arg-type]
    assert [example.names for example in examples] == [("tokens", "mask"), ()]
