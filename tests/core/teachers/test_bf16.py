"""What a teacher says in bf16, forced on any CPU, and how far it may be from what it says in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdq_core.teachers.source import OnlineTeacher
from kdq_core.tensors import Batch
from kdq_core.work.teaching import online_teacher, teacher_source

pytestmark = pytest.mark.isa

CPU = torch.device("cpu")
U = torch.finfo(torch.bfloat16).eps / 2
"""Largest relative error of one rounding, 2**-8: eight significant bits, so neighbours are 2**-7 apart."""
SUMS = 1 + 2**-9
"""For what is summed in fp32, in both: at most 2 * 32 products at 2**-24 each, 2**-10 of what one rounding to bf16
adds; as much again for batch norm's few operations."""
FIT = {"epochs": 2, "batch_size": 32}
STILL = {**FIT, "learning_rate": 1e-12}  # the student stays what it was, so that curves differ by the teacher alone
LOSSES = [{"use": "mse-logits", "options": {"alpha": 1.0}}, {"use": "fitnet"}]


def bounded(model: nn.Sequential, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What each module says in fp32, and the most that bf16 can be off.

    Inputs and weights are rounded; a product sums in fp32 and is rounded; so is its sum with the bias, and what batch
    norm gives. relu and the like add nothing.
    """
    said, off, found = x, U * x.abs(), {}
    for name, layer in model.named_children():
        before, said = said, layer(said)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.bias is not None
            bias = layer.bias[:, None, None] if isinstance(layer, nn.Conv2d) else layer.bias
            off = (1 + U) * _through(layer, off) + U * _through(layer, before.abs())  # Σ|w|·off, and of |w| itself
            off = off + U * ((said - bias).abs() + off) + U * bias.abs()
            off = SUMS * (off + U * (said.abs() + off))
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.running_var is not None
            scale = (layer.weight / (layer.running_var + layer.eps).sqrt()).abs()
            off = scale[:, None, None] * off
            off = SUMS * (off + U * (said.abs() + off))
        elif isinstance(layer, nn.Flatten):
            off = off.flatten(1)
        found[name] = said, off
    return found


def _through(layer: nn.Conv2d | nn.Linear, size: Tensor) -> Tensor:
    """`Σ |w| * size`."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(size, layer.weight.abs())
    return nn.functional.conv2d(size, layer.weight.abs(), None, layer.stride)


def of_bf16(values: Tensor) -> bool:
    return torch.equal(values, values.bfloat16().float())


def taught(stages_of: Any, home: Path, catalog: Any, precision: str, **cache: Any) -> Any:
    """A run of the tiny workload whose teacher's logits and features are kept, or that teaches beside the student."""
    teacher = {"fit": FIT, "precision": precision, "cache": {"views": 2, **cache}}
    distill = {"fit": STILL, "losses": LOSSES}
    run = stages_of(home, catalog, workload="digits", teacher=teacher, distill=distill)
    for node in run.plan.nodes:
        if node.name in ("train_teacher", "cache_teacher", "distill"):
            run.stage(node.name)
    return run


@pytest.fixture(scope="module")
def runs(stages_of: Any, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One teacher, kept in bf16 in both forms, and beside its student in both precisions."""
    asked = {
        "kept": ("bf16", {"features": True}), "kept fp32": ("bf16", {"features": True, "form": "fp32"}),
        "beside": ("bf16", {"enabled": False}), "beside fp32": ("fp32", {"enabled": False}),
    }  # fmt: skip
    return {
        name: taught(stages_of, tmp_path_factory.mktemp("home"), tiny, precision, **cache)
        for name, (precision, cache) in asked.items()
    }


def rows(run: Any) -> dict[str, Tensor]:
    """What is kept of the first view, by the teacher's module; the logits are those of `head`."""
    entry, found = run.entries["cache_teacher"], {}
    for tensor in entry.record.tensors:
        kept = np.fromfile(entry.file(tensor.path), tensor.dtype).reshape(2, 96, *tensor.shape)[0]
        found[tensor.name.replace("logits", "features/head").removeprefix("features/")] = torch.from_numpy(kept).float()
    return found


def expected(run: Any, scratch: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """What the run's teacher says in fp32 of each training sample, and the most that bf16 can be off."""
    context = run.work("distill", scratch)
    model = context.model("teacher")
    (batch,) = context.workload.batches("train", batch_size=96)
    with torch.no_grad():
        return bounded(model, batch.inputs[0][batch.ids.argsort()])


def test_what_is_kept_is_of_bf16_and_as_near_to_fp32_as_its_roundings_allow(
    runs: dict[str, Any], tmp_path: Path
) -> None:
    kept, found = rows(runs["kept fp32"]), expected(runs["kept fp32"], tmp_path)
    assert kept.keys() == {"head", "relu", "flat"}
    for name, values in kept.items():
        said, off = found[name]
        assert of_bf16(values), name
        assert not of_bf16(said), name
        assert ((values - said).abs() <= off).all(), name
        assert (values - said).abs().max() > off.max() / 100, name  # the bound is no empty one


def test_fp16_keeps_what_bf16_said_bit_by_bit(runs: dict[str, Any]) -> None:
    """It has more bits; below 2**-17 the last of bf16's eight is under fp16's smallest step, 2**-24."""
    half, whole = rows(runs["kept"]), rows(runs["kept fp32"])
    for name, values in whole.items():
        exact = (values == 0) | (values.abs() >= 2**-17)
        assert exact.any(), name
        assert torch.equal(half[name][exact], values[exact]), name
        assert ((half[name] - values).abs() <= 2**-25).all(), name


def test_kept_answers_of_bf16_are_those_of_the_teacher_beside_the_student(runs: dict[str, Any], tmp_path: Path) -> None:
    """Batches of another size may round a sum the other way, so both are within the bound of what fp32 says."""
    found = expected(runs["kept"], tmp_path)
    context = runs["kept"].work("distill", tmp_path)
    kept, beside = teacher_source(context, CPU), online_teacher(context, CPU, half=True)
    for batch in context.batches(1, 32):
        one, other = (source(batch, ("relu",)) for source in (kept, beside))
        for name, given, asked in (
            ("head", one.logits, other.logits),
            ("relu", one.features["relu"], other.features["relu"]),
        ):
            assert ((given - asked).abs() <= 2 * found[name][1][batch.ids]).all(), name


def test_a_teacher_beside_the_student_teaches_in_bf16(runs: dict[str, Any], tmp_path: Path) -> None:
    """With the loss L = mean |s - t|² and logits t that move by D in the square mean, L moves by 2 D sqrt(L) + D²."""
    whole, half = curve(runs["beside fp32"]), curve(runs["beside"])
    assert whole != half
    far = expected(runs["beside"], tmp_path)["head"][1].square().sum(1).mean().sqrt().item()
    for loss, near in zip(whole, half, strict=True):
        assert abs(loss - near) <= 2 * far * loss**0.5 + far**2


def curve(run: Any) -> list[float]:
    return [epoch.values["train/mse-logits/mse"] for epoch in run.entries["distill"].record.history]


def test_logits_come_as_float32_within_the_bound_of_a_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 64))
    batch = Batch((torch.randn(2, 1),), None, torch.arange(2))
    (said, off), half = bounded(model, batch.inputs[0])["0"], OnlineTeacher(model, half=True)(batch).logits
    assert half.dtype == torch.float32
    assert of_bf16(half)
    assert not torch.equal(half, said)
    assert ((half - said).abs() <= off).all()
