"""In which precision the stages compute when the site asks for bf16, and what plug-ins are given then."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdq_core.plugins.catalog import Catalog
from kdq_core.store.records import Checkpoint
from kdq_core.tensors import Batch, Outputs

STAGES = ["train_teacher", "distill", "quantize"]
FIT = {"epochs": 2, "batch_size": 32}
TAPPED = ["logit-kd", {"use": "fitnet", "taps": [["relu", "relu"]]}]


def run_of(stages_of: Any, home: Path, catalog: Catalog, precision: str, distill: Any = {}) -> Any:  # noqa: B006
    return stages_of(
        home, catalog, precision=precision, workload="digits", stages=STAGES,
        teacher={"fit": FIT, "precision": "fp32"}, distill={**distill, "fit": FIT},
        quantize={"use": "minmax-qat", "fit": {**FIT, "epochs": 1}},
    )  # fmt: skip


def losses(run: Any, stage: str) -> list[float]:
    record = run.stage(stage).record
    assert isinstance(record, Checkpoint)
    return [one.values["train/loss"] for one in record.history]


def test_fits_in_float_are_in_bf16_and_near_those_in_fp32(stages_of: Any, tmp_path: Path, tiny: Catalog) -> None:
    full, half = (run_of(stages_of, tmp_path / p, tiny, p) for p in ("fp32", "bf16"))
    for stage in ("train_teacher", "distill"):
        one, other = losses(full, stage), losses(half, stage)
        assert one != other, stage
        assert other == pytest.approx(one, rel=0.05), stage
    weights = load_file(half.stage("distill").file("weights.safetensors"))
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


def test_auto_gives_the_bytes_of_fp32(stages_of: Any, tmp_path: Path, tiny: Catalog) -> None:
    auto, full = (run_of(stages_of, tmp_path / p, tiny, p) for p in ("auto", "fp32"))
    assert auto.stage("train_teacher").manifest.key == full.stage("train_teacher").manifest.key
    assert auto.stage("train_teacher").digest == full.stage("train_teacher").digest


def test_quantization_is_in_float32_whatever_the_site_asks_for(
    stages_of: Any, tmp_path: Path, tiny: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(stages_of, tmp_path, tiny, "bf16")
    for stage in ("train_teacher", "distill"):
        run.stage(stage)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a stage that quantizes computes in bf16")

    monkeypatch.setattr(torch, "autocast", _only_off(refused))
    run.stage("quantize")
    full = run_of(stages_of, tmp_path, tiny, "fp32")
    node, digests = full.plan.node("quantize"), {name: entry.digest for name, entry in run.entries.items()}
    assert run.plan.node("quantize").key(digests) == node.key(digests)


def _only_off(refused: Any) -> Any:
    """Torch's autocast, which must be asked for only to be off."""
    plain = torch.autocast

    class Autocast(plain):  # type: ignore[misc, valid-type]
        def __init__(self, device: str, dtype: Any = None, *, enabled: bool = True) -> None:
            if enabled:
                refused()
            super().__init__(device, dtype, enabled=enabled)

    return Autocast


def test_workload_and_distillers_are_given_float32(
    stages_of: Any, tmp_path: Path, tiny: Catalog, installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[Any] = set()
    base: Any = type(tiny.build("workload", "digits", {}))

    class Looking(base):  # type: ignore[misc]
        def loss(self, outputs: Outputs, batch: Batch) -> Any:
            seen.add(("workload", outputs.logits.dtype, torch.is_autocast_enabled("cpu")))
            return super().loss(outputs, batch)

    catalog = installed(Looking)
    for name in ("logit-kd", "fitnet"):
        kind = type(catalog.build("distiller", name, {}))

        def loss(self: Any, student: Outputs, teacher: Outputs, batch: Batch, plain: Any = kind.loss) -> Any:
            dtypes = {x.dtype for o in (student, teacher) for x in (o.logits, *o.features.values())}
            seen.add((type(self).__name__, *dtypes, torch.is_autocast_enabled("cpu")))
            return plain(self, student, teacher, batch)

        monkeypatch.setattr(kind, "loss", loss)
    run = run_of(stages_of, tmp_path, catalog, "bf16", {"losses": TAPPED})
    for stage in ("train_teacher", "distill"):
        run.stage(stage)
    assert {one[1:] for one in seen} == {(torch.float32, False)}
    assert len({one[0] for one in seen}) == 3
