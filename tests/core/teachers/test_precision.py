"""In which precision a teacher answers, and which stages that changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdq_core.teachers.source import half_precision

CPU = torch.device("cpu")


def logits(stages_of: Any, home: Path, catalog: Any, precision: str, form: str = "fp32") -> torch.Tensor:
    cache = {"views": 1, "form": form}
    teacher = {"fit": {"epochs": 1}, "precision": precision, "cache": cache}
    run = stages_of(home, catalog, workload="digits", teacher=teacher)
    for stage in ("train_teacher", "cache_teacher"):
        run.stage(stage)
    kept = np.fromfile(run.entries["cache_teacher"].file("logits.bin"), {"fp32": "<f4", "fp16": "<f2"}[form])
    return torch.from_numpy(kept.astype("float32"))


def of_bf16(values: torch.Tensor) -> bool:
    return torch.equal(values, values.bfloat16().float())


@pytest.mark.parametrize("amx", [True, False])
def test_a_cpu_answers_in_bf16_by_default_where_it_has_amx_and_what_is_kept_is_fp16(
    stages_of: Any, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch, amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx, "avx512_bf16": True})
    assert half_precision(CPU) is amx
    assert of_bf16(logits(stages_of, tmp_path / "fp16", tiny, "auto", "fp16")) is amx
    assert not of_bf16(logits(stages_of, tmp_path / "fp32", tiny, "auto", "fp32"))


def test_a_cpu_that_tells_nothing_of_itself_answers_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert not half_precision(CPU)


def test_bf16_and_fp32_are_as_asked_whatever_the_device(
    stages_of: Any, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    whole, half = (logits(stages_of, tmp_path / precision, tiny, precision) for precision in ("fp32", "bf16"))
    assert of_bf16(half)
    assert not of_bf16(whole)
    torch.testing.assert_close(half, whole, rtol=2**-5, atol=2**-5)


@pytest.mark.parametrize(
    ("enabled", "by", "changed"),
    [
        (True, "teachers", ["cache_teacher"]),
        (False, "teachers", ["distill", "quantize"]),
        (True, "student", ["cache_teacher", "quantize"]),  # its float self answers in it too, beside it
    ],
)
def test_another_precision_is_another_answer_of_the_same_teacher(
    stages_of: Any, tmp_path: Path, tiny: Any, enabled: bool, by: str, changed: list[str]
) -> None:
    asked = {"workload": "digits", "quantize": {"taught_by": by}}
    plans = [
        stages_of(tmp_path, tiny, **asked, teacher={"precision": p, "cache": {"enabled": enabled}}).plan
        for p in ("fp32", "bf16")
    ]
    parts = [{node.name: node.parts for node in plan.nodes} for plan in plans]
    assert [name for name in parts[0] if parts[0][name] != parts[1][name]] == changed


def test_a_teacher_beside_the_student_teaches_in_bf16(stages_of: Any, tmp_path: Path, tiny: Any) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        run = stages_of(
            tmp_path / precision,
            tiny,
            workload="digits",
            teacher={"fit": {"epochs": 1}, "precision": precision, "cache": {"enabled": False}},
            distill={"fit": {"epochs": 2}},
        )
        for stage in ("train_teacher", "distill"):
            run.stage(stage)
        losses.append([epoch.values["train/loss"] for epoch in run.entries["distill"].record.history])
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
