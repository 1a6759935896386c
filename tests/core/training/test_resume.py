"""A fit that was stopped anywhere gives the bits of one that was not."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from kdq_core.errors import TransientError
from kdq_core.recipe.spec import FitSpec
from kdq_core.store.records import EpochRecord
from kdq_core.tensors import Batch
from kdq_core.training import resume as resuming
from kdq_core.training.fit import FitHooks, fit
from kdq_core.training.resume import Due, tensors_of
from kdq_core.training.stopping import AskedToStopError, stopping_on_sigterm

STEPS = 3
"""Steps of an epoch."""


def batches(epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    for start in range(0, 16 * STEPS, 16):
        x = torch.randn(16, 3, 4, 4, generator=generator)
        torch.rand(1)  # a workload may draw from torch's own generator, though its batches must not follow it
        yield Batch(inputs=(x,), targets=(x.sum((1, 2, 3)) > 0).long(), ids=torch.arange(start, start + 16))


def model(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 2))


def hard(m: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    value = nn.functional.cross_entropy(m(*batch.inputs), batch.targets)
    return {"hard": value, "also": 0.1 * value} if int(batch.ids[0]) else {"hard": value}  # a term of some batches


class KilledError(Exception):
    pass


def run(m: nn.Module, optimizer: str, state: Path | None = None, **given: object) -> tuple[EpochRecord, ...]:
    spec = FitSpec(epochs=3, batch_size=16, learning_rate=0.05, optimizer=optimizer)  # type: ignore[arg-type]
    return fit(m, hard, batches, spec, samples=48, accelerator=Accelerator(cpu=True), resume=state, **given)  # type: ignore[arg-type]


def killed_after(step: int) -> FitHooks:
    def kill(done: int, _total: int) -> None:
        if done == step:
            raise KilledError

    return FitHooks(before_step=kill)


def asked_in_step(step: int) -> FitHooks:
    hooks = FitHooks()

    def ask(done: int, _total: int) -> None:
        hooks.stop.asked = done == step

    return replace(hooks, after_step=ask)


def resumed(state: Path, optimizer: str) -> tuple[nn.Module, tuple[EpochRecord, ...], list[int]]:
    begun: list[int] = []
    again = model(seed=99)
    history = run(again, optimizer, state, hooks=FitHooks(before_step=lambda done, _total: begun.append(done)))
    return again, history, begun


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("hooks", "due", "first"),
    [
        (lambda: killed_after(2), None, 0),  # before anything was kept
        (lambda: killed_after(4), None, 3),  # back to the last epoch
        (lambda: killed_after(5), Due(steps=2), 5),
        (lambda: killed_after(5), Due(seconds=1e-9), 3),  # a state is due, but has just cost time
        (lambda: asked_in_step(5), None, 5),
        (lambda: asked_in_step(6), None, 6),  # all steps of the epoch are done, and it is not scored
        (lambda: asked_in_step(9), None, 9),
    ],
)
def test_a_fit_that_was_stopped_goes_on_with_the_same_bits(
    tmp_path: Path, optimizer: str, hooks: Callable[[], FitHooks], due: Due | None, first: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(resuming, "COST", 1e9)
    whole, state = model(), tmp_path / "scratch" / "fit.safetensors"
    history = run(whole, optimizer)
    with pytest.raises((KilledError, TransientError)):
        run(model(), optimizer, state, hooks=hooks(), due=due)
    assert [p.name for p in state.parent.iterdir()] == ["fit.safetensors"]
    again, found, begun = resumed(state, optimizer)
    assert found == history
    assert begun == list(range(first, 9))
    ours, theirs = tensors_of(again), tensors_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert again[0].weight.stride()[1] == 1  # it computes channels last


def test_a_fit_that_is_asked_to_stop_says_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(TransientError) as caught:
        run(model(), "sgd", tmp_path / "fit.safetensors", hooks=asked_in_step(5))
    assert str(caught.value) == (
        "the fit was asked to stop after step 5 of 9; its state is kept, and the next try resumes it"
    )


def test_a_fit_need_not_finish_scoring_to_stop(tmp_path: Path) -> None:
    whole, state = model(), tmp_path / "fit.safetensors"
    history = run(whole, "adamw")

    def score(_model: nn.Module) -> dict[str, float]:
        torch.rand(1)
        raise AskedToStopError

    with pytest.raises(TransientError, match="after step 3 of 9"):
        run(model(), "adamw", state, hooks=FitHooks(score=score))
    again, found, begun = resumed(state, "adamw")
    assert (found, begun) == (history, list(range(3, 9)))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("size", [0, 3, 100])
def test_a_state_that_was_cut_short_is_as_none(tmp_path: Path, size: int) -> None:
    state = tmp_path / "fit.safetensors"
    history = run(model(), "adamw", state)
    state.write_bytes(state.read_bytes()[:size])
    assert run(model(), "adamw", state) == history


def test_sigterm_asks_a_fit_to_stop_and_afterwards_means_what_it_meant_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_sigterm() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(AskedToStopError):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) == before
