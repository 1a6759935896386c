"""What KDQ reads of the CPU, and what it advises on one with AMX."""

from pathlib import Path
from typing import Any

import pytest

from kdq_core.plan.cpu import instruction_sets
from kdq_core.plan.plan import make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site

AMX = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n"
HINT = (
    "the teacher answers in fp32; on this CPU, which has AMX, teacher: {precision: bf16} makes its answers faster, and "
    "rounds them to 8 bits"
)


def read(folder: Path, text: str) -> frozenset[str]:
    file = folder / "cpuinfo"
    file.write_text(text)
    return instruction_sets(file)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (AMX, {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        ("flags\t\t: fpu avx\nflags\t\t: fpu avx\n", set()),
        ("Features\t: fp asimd asimddp i8mm\n", {"asimddp", "i8mm"}),
        ("", set()),
    ],
)
def test_the_instruction_sets_that_matter_are_read(text: str, found: set[str], tmp_path: Path) -> None:
    assert read(tmp_path, text) == found


def test_a_machine_that_does_not_tell_has_none(tmp_path: Path) -> None:
    assert instruction_sets(tmp_path / "missing") == frozenset()


@pytest.mark.parametrize(
    ("teacher", "device", "text", "told"),
    [
        ({}, "cpu", AMX, True),
        ({"cache": {"enabled": False}}, "cpu", AMX, True),
        ({"members": ["onnx", {}]}, "cpu", AMX, True),
        ({}, "cpu", AMX.replace("amx_bf16", ""), False),  # AVX512-BF16 alone may be slower
        ({}, "cuda:0", AMX, False),
        ({"precision": "fp32"}, "cpu", AMX, False),
        ({"precision": "bf16"}, "cpu", AMX, False),
        ({"cache": {"form": "fp32"}}, "cpu", AMX, False),
        ({"members": ["onnx"]}, "cpu", AMX, False),
    ],
)
def test_bf16_is_advised_where_it_is_faster_and_nothing_else_is_asked(
    teacher: dict[str, Any], device: str, text: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = tmp_path / "teacher.onnx"
    onnx.write_bytes(b"")
    members = [{"source": "onnx", "file": str(onnx)} if m == "onnx" else m for m in teacher.get("members", [{}])]
    asked = {"name": "x", "workload": "digits", "gates": [], "teacher": {**teacher, "members": members}}
    found = read(tmp_path, text)
    monkeypatch.setattr("kdq_core.plan.plan.instruction_sets", lambda: found)
    site = Site(home=tmp_path, device=device, precision="fp32")  # so that the plan says nothing of fits
    plan = make_plan(Recipe.model_validate(asked), site, Catalog.load())
    assert plan.note == (HINT if told else "")
