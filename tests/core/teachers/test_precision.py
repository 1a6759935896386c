"""In which precision a teacher answers, and which stages that changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdq_core.teachers.source import half_precision


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


def test_a_cpu_answers_in_fp32_by_default_whatever_it_is_good_at(
    stages_of: Any, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "avx512_bf16": True})
    assert not half_precision(torch.device("cpu"))
    asked, given = (logits(stages_of, tmp_path / name, tiny, name, "fp16") for name in ("auto", "fp32"))
    assert torch.equal(asked, given)
    assert not of_bf16(asked)


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_answers_in_bf16_by_default_where_it_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: supported)
    assert half_precision(torch.device("cuda", 0)) is supported


def test_bf16_and_fp32_are_as_asked(stages_of: Any, tmp_path: Path, tiny: Any) -> None:
    whole, half = (logits(stages_of, tmp_path / precision, tiny, precision) for precision in ("fp32", "bf16"))
    assert of_bf16(half)
    assert not of_bf16(whole)


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
