"""After a lack of memory a fit computes its batches in parts, with the gradients of whole batches."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from kdq_core.recipe.spec import FitSpec
from kdq_core.tensors import Batch
from kdq_core.training.fit import FitHooks, fit
from kdq_core.training.micro import MicroBatch, said_of_ranks
from kdq_core.training.resume import tensors_of
from kdq_core.training.rows import IGNORED

FITS = 5
"""So many samples fit into the memory of this test's device."""


def batches(epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    for start in range(0, 40, 16):
        x = torch.randn(min(16, 40 - start), 4, generator=generator)
        labels = (x.sum(1) > 0).long()
        labels[:7] = IGNORED  # a part may hold no label at all
        yield Batch(inputs=(x,), targets=labels, ids=torch.arange(start, start + len(x)))


def model(norm: bool = False) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 2))


def terms(m: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    logits = m(*batch.inputs)
    return {"kd": logits.square().mean(), "hard": nn.functional.cross_entropy(logits, batch.targets)}


class Device:
    """Runs out of memory for more than `fits` samples, after some steps that it had the memory for."""

    def __init__(self, fits: int, error: Exception, after: int = 0) -> None:
        self.fits, self.error, self.left = fits, error, after
        self.seen: list[int] = []

    def __call__(self, m: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        self.seen.append(len(batch.ids))
        found = terms(m, batch)
        if len(batch.ids) > self.fits and self.left <= 0:
            raise self.error
        self.left -= 1
        return found


def run(m: nn.Module, loss: object, state: Path | None = None, **hooks: object) -> tuple[object, ...]:
    spec = FitSpec(epochs=2, batch_size=16, learning_rate=0.05, optimizer="sgd", clip_norm=0.5)
    given = FitHooks(**hooks)  # type: ignore[arg-type]
    return fit(m, loss, batches, spec, samples=40, accelerator=Accelerator(cpu=True), hooks=given, resume=state)  # type: ignore[arg-type]


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("error", "after"), [(CUDA, 0), (MemoryError(), 0), (CUDA, 4)], ids=["CUDA", "CPU", "in the second epoch"]
)
def test_a_fit_survives_a_lack_of_memory_with_the_gradients_of_whole_batches(
    tmp_path: Path, error: Exception, after: int
) -> None:
    whole, cut, state = model(), model(), tmp_path / "fit.safetensors"
    history = run(whole, terms)
    said: list[str] = []
    device = Device(FITS, error, after)
    found = run(cut, device, state, on_smaller=said.append)
    for name, weight in tensors_of(whole).items():
        torch.testing.assert_close(tensors_of(cut)[name], weight, rtol=1e-5, atol=1e-6)
    for one, other in zip(found, history, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-5)
    assert max(device.seen[-8:]) <= FITS
    assert said == [
        f"out of memory: goes on with {size} samples at a time, whose gradients add up to those of a batch of 16"
        for size in (8, 4)
    ]
    assert MicroBatch(state.with_suffix(".micro")).size == 4


def test_the_size_that_was_found_is_where_the_next_try_begins(tmp_path: Path) -> None:
    state, device = tmp_path / "fit.safetensors", Device(FITS, CUDA)
    state.with_suffix(".micro").write_text("4\n")
    run(model(), device, state, on_smaller=pytest.fail)
    assert set(device.seen) == {4}


def test_a_batch_norm_is_told_of_and_gets_two_samples_at_least(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(torch.OutOfMemoryError):
        run(model(norm=True), Device(1, CUDA), tmp_path / "fit.safetensors", on_smaller=said.append)
    assert said[-1] == (
        "out of memory: goes on with 2 samples at a time, whose gradients add up to those of a batch of 16; its batch "
        "norms then measure 2 samples at a time, so the result is not quite that of whole batches"
    )


@pytest.mark.parametrize(
    ("error", "state"), [(RuntimeError("the word 'out of memory' is no class"), "fit"), (CUDA, None)]
)
def test_other_errors_and_fits_that_keep_no_state_end_as_ever(
    tmp_path: Path, error: Exception, state: str | None
) -> None:
    device = Device(FITS, error)
    with pytest.raises(type(error)):
        run(model(), device, tmp_path / state if state else None)
    assert len(device.seen) == 1


@pytest.mark.parametrize(("ranks", "size"), [(2, None), (3, None), (2, 2), (9, None)])
def test_the_shares_of_several_processes_have_the_gradients_of_the_whole_batch(ranks: int, size: int | None) -> None:
    """The mean over the processes, as they reduce it; also where one process has no label."""
    whole, shared, micro = model(), model(), MicroBatch()
    micro.size = size
    for batch in batches(1):
        sum(terms(whole, batch).values(), torch.zeros(())).backward()
        told = []
        for rank in range(ranks):
            parts = list(micro.parts(batch, rank, ranks))
            assert size is not None or all(len(part.ids) > 1 for part, _ in parts)  # a batch norm needs two
            found = [weigh(terms(shared, part)) for part, weigh in parts]
            assert all(set(one) == {"kd", "hard"} for one in found)
            told.append(sum(value.item() for one in found for value in one.values()))
            (sum((v for one in found for v in one.values()), torch.zeros(())) / ranks).backward()
        assert sum(told) / ranks == pytest.approx(sum(value.item() for value in terms(whole, batch).values()), rel=1e-5)
    for one, other in zip(whole.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-6)


def test_batch_norms_of_several_devices_are_told_of() -> None:
    assert said_of_ranks(model().train(), 2, 16) is None
    assert said_of_ranks(model(norm=True).train(), 2, 16) == (
        "2 devices share each batch of 16; the batch norms measure each device's samples, and those of the first "
        "device are kept, so the result is not quite that of one device"
    )
