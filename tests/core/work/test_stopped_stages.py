"""Stages whose fit is stopped in the middle of an epoch, or finds too little memory."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdq_core.errors import TransientError
from kdq_core.plugins.catalog import Catalog
from kdq_core.work import quantizing

FIT = {"epochs": 2, "batch_size": 16}  # six steps an epoch


def test_a_quantized_student_that_was_stopped_while_its_ranges_move_gets_the_same_bits(
    stages_of: Any, tiny: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases, steps = quantizing.phases, list[int]()

    def stopping(*given: Any) -> Callable[[int, int], None]:
        enter = phases(*given)

        def both(done: int, total: int) -> None:
            enter(done, total)
            steps.append(done)
            if len(steps) == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        return both

    def run(home: str) -> Any:
        return stages_of(
            tmp_path / home, tiny, workload="digits", stages=["train_teacher", "distill", "quantize"],
            teacher={"fit": FIT | {"epochs": 1}}, distill={"fit": FIT | {"epochs": 1}},
            quantize={"use": "minmax-qat", "fit": FIT},
        )  # fmt: skip

    whole, stopped = run("whole"), run("stopped")
    for one in (whole, stopped):
        one.stage("train_teacher")
        one.stage("distill")
    digest = whole.stage("quantize").digest
    monkeypatch.setattr(quantizing, "phases", stopping)
    with pytest.raises(TransientError, match="the fit was asked to stop after step 5 of 12"):
        stopped.stage("quantize")
    assert stopped.stage("quantize").digest == digest
    assert steps == list(range(12))


def test_a_stage_survives_a_lack_of_memory_and_its_next_run_knows(
    stages_of: Any, tiny: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stages_of(tmp_path, tiny, workload="digits", stages=["train_teacher"], teacher={"fit": FIT})
    kind = type(tiny.build("workload", "digits", {}))
    loss, seen = kind.loss, list[int]()

    def planted(self: Any, outputs: Any, batch: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append(len(batch.ids))
            if len(batch.ids) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(self, outputs, batch)  # type: ignore[no-any-return]

    monkeypatch.setattr(kind, "loss", planted)
    run.checked = True
    entry = run.stage("train_teacher")
    assert [event["text"].partition(",")[0] for event in run.events if event["event"] == "note"] == [
        f"out of memory: goes on with {size} samples at a time" for size in (8, 4)
    ]
    assert (tmp_path / "micro-batches" / entry.manifest.key / "fit.micro").read_text() == "4\n"
    assert list((tmp_path / "scratch").iterdir()) == []
    first = seen.count(4)
    run.entries.clear()
    from kdq_core.store.store import Store

    Store(run.site.store).discard(entry.manifest.key)
    assert run.stage("train_teacher").digest == entry.digest
    assert seen[-first:] == [4] * first
    assert seen.count(16) == 1
