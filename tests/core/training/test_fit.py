import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from kdq_core.errors import StageError
from kdq_core.recipe.spec import FitSpec
from kdq_core.store.records import EpochRecord
from kdq_core.tensors import Batch
from kdq_core.training.fit import FitHooks, fit, learning_rate


def batches(epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    for start in range(0, 48, 16):
        x = torch.randn(16, 4, generator=generator)
        yield Batch(inputs=(x,), targets=(x.sum(1) > 0).long(), ids=torch.arange(start, start + 16))


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def hard(m: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    return {"hard": nn.functional.cross_entropy(m(*batch.inputs), batch.targets)}


def fitted(m: nn.Module, epochs: int = 4, **given: object) -> tuple[EpochRecord, ...]:
    spec = FitSpec(epochs=epochs, batch_size=16, learning_rate=0.05)
    return fit(m, hard, batches, spec, samples=48, accelerator=Accelerator(cpu=True), **given)  # type: ignore[arg-type]


def test_a_fit_lowers_the_loss_and_records_every_epoch() -> None:
    history = fitted(model(), epochs=8)
    assert [record.epoch for record in history] == list(range(1, 9))
    assert history[-1].values["train/loss"] < 0.7 * history[0].values["train/loss"]


def test_a_term_that_some_batches_lack_is_the_mean_over_those_that_have_it() -> None:
    def terms(m: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        soft = 0.0 * m(*batch.inputs).sum() + 1.0
        return {"soft": soft, "hard": 4 * soft} if int(batch.ids[0]) == 16 else {"soft": soft}

    spec = FitSpec(epochs=1, batch_size=16)
    (record,) = fit(model(), terms, batches, spec, samples=48, accelerator=Accelerator(cpu=True))
    assert record.values == pytest.approx({"train/loss": 7 / 3, "train/soft": 1.0, "train/hard": 4.0})


def test_scoring_that_changes_a_buffer_is_an_error() -> None:
    def leaky(m: nn.Module) -> dict[str, float]:
        m[1].running_mean.add_(1)  # type: ignore[index, union-attr, operator]
        return {}

    with pytest.raises(StageError) as caught:
        fitted(model(), hooks=FitHooks(score=leaky))
    assert str(caught.value) == (
        "scoring changed a buffer of the model, so test data leaked into it; switch its observers off"
    )


def test_a_loss_that_is_not_finite_stops_the_fit_and_says_where() -> None:
    def broken(m: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"hard": hard(m, batch)["hard"], "soft": torch.tensor(float("nan"))}

    with pytest.raises(StageError) as caught:
        fit(model(), broken, batches, FitSpec(epochs=1), samples=48, accelerator=Accelerator(cpu=True))
    text = str(caught.value)
    assert text.startswith("the loss became nan in epoch 1, step 1 (hard ")
    assert text.endswith("soft nan); lower learning_rate, set clip_norm, or check the data for NaN")


def test_a_loss_without_a_gradient_is_named() -> None:
    with pytest.raises(StageError) as caught:
        fit(
            model(), lambda m, batch: {"hard": m(*batch.inputs).detach().mean()}, batches, FitSpec(epochs=1),
            samples=48, accelerator=Accelerator(cpu=True),
        )  # fmt: skip
    assert str(caught.value) == (
        "the loss (hard) carries no gradient to the model; let the workload's loss() and the distillers compute with "
        "the model's outputs as they are, not detached and not as numbers"
    )


def test_a_workload_without_training_data_is_an_error() -> None:
    with pytest.raises(StageError, match="the workload gave no training batch; check its split 'train'"):
        fit(model(), hard, lambda _epoch: [], FitSpec(epochs=1), samples=48, accelerator=Accelerator(cpu=True))


def test_a_model_without_parameters_is_an_error() -> None:
    with pytest.raises(StageError, match="the model has no trainable parameter; check that its parameters require"):
        fitted(nn.ReLU())


def test_terms_are_summed_and_each_is_recorded() -> None:
    def two(m: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        value = hard(m, batch)["hard"]
        return {"hard": 0.25 * value, "soft": 0.75 * value}

    spec = FitSpec(epochs=1, batch_size=16)
    values = fit(model(), two, batches, spec, samples=48, accelerator=Accelerator(cpu=True))[0].values
    assert values["train/loss"] == pytest.approx(values["train/hard"] + values["train/soft"], rel=1e-6)
    assert values["train/soft"] == pytest.approx(3 * values["train/hard"], rel=1e-5)


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    spec = FitSpec(learning_rate=1.0, warmup=0.1, schedule="cosine")
    assert [learning_rate(spec, step, 20) for step in (0, 1)] == [0.5, 1.0]
    assert learning_rate(spec, 11, 20) == pytest.approx(0.5, abs=1e-9)
    assert learning_rate(spec, 19, 20) == pytest.approx(0.5 * (1 + math.cos(math.pi * 17 / 18)))
    assert learning_rate(FitSpec(learning_rate=1.0, warmup=0, schedule="linear"), 5, 20) == 0.75
    assert learning_rate(FitSpec(learning_rate=1.0, warmup=0, schedule="constant"), 19, 20) == 1.0


def test_vectors_are_not_decayed() -> None:
    m = nn.Linear(3, 2)
    with torch.no_grad():
        m.weight.fill_(1.0)
        m.bias.fill_(1.0)

    def nothing(linear: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"zero": 0.0 * linear(batch.inputs[0][:, :3]).sum()}

    spec = FitSpec(epochs=1, learning_rate=0.1, weight_decay=0.5, warmup=0, schedule="constant")
    fit(m, nothing, batches, spec, samples=48, accelerator=Accelerator(cpu=True))
    assert torch.all(m.weight < 0.9)
    assert torch.equal(m.bias, torch.ones(2))


DISTRIBUTED = """
import os, sys, torch
from accelerate import Accelerator
from torch import nn
from kdq_core.distillation.assembly import student_and_loss
from kdq_core.distillation.parts import Part
from kdq_core.distillation.transfer import holding
from kdq_core.recipe.spec import FitSpec, TransferSpec
from kdq_core.teachers.source import OnlineTeacher
from kdq_core.tensors import Batch
from kdq_core.training.fit import FitHooks, fit
from kdq_distillers.fitnet import Fitnet
from kdq_distillers.logit_kd import LogitKd

class Hard:
    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs.logits, batch.targets)

def batches(epoch):
    x = torch.randn(47, 4, generator=torch.Generator().manual_seed(epoch))
    for at in range(0, 47, 16):
        part = x[at:at + 16]
        labels = (part.sum(1) > 0).long() if at else None
        if at == 16:
            labels[::2] = -100  # the first process has no label
        yield Batch(inputs=(part,), targets=labels, ids=torch.arange(at, at + len(part)))

if "RANK" in os.environ:  # they meet by a file: a port that is free now may be taken when they come to it
    torch.distributed.init_process_group(
        "gloo", "file://" + sys.argv[2], rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )
torch.manual_seed(3)
student, teacher = (nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2)) for n in (8, 12))
parts = [(Part("kd", LogitKd()), "auto"), (Part("hint", Fitnet()), "auto")]
model, loss = student_and_loss(Hard(), parts, OnlineTeacher(teacher), student, next(batches(0)))
assert any(name.startswith("projectors") for name, _ in model.named_parameters())
spec, accelerator = FitSpec(epochs=3, batch_size=16, learning_rate=0.05, optimizer="sgd"), Accelerator(cpu=True)
held = holding(TransferSpec(hold=0.5, rounds=3), student, ("0.weight", "0.bias", "2.weight"), epochs=3, seed=0)
hooks = FitHooks(before_step=loss.before_step, **held)
history = fit(model, loss, batches, spec, samples=47, accelerator=accelerator, hooks=hooks)
if accelerator.is_main_process:
    torch.save({"world": accelerator.num_processes, "weights": model.state_dict(),
                "loss": [record.values["train/loss"] for record in history]}, sys.argv[1])
"""


@pytest.mark.rare
@pytest.mark.slow
def test_two_processes_give_the_fit_of_one(tmp_path: Path) -> None:
    """Each takes half of every batch; steps, learning rates, gradients and curves stay those of one process.

    So it is with a teacher, projectors, a batch without labels, a batch in which one process has none, an odd batch,
    and parameters that are held for an epoch.
    """
    (tmp_path / "fit.py").write_text(DISTRIBUTED)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "GLOO_SOCKET_IFNAME": "lo"}
    groups: list[list[dict[str, str]]] = [[{}], [{**shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in (0, 1)]]
    results = []
    for group in groups:
        words = [sys.executable, str(tmp_path / "fit.py"), str(tmp_path / "out.pt"), str(tmp_path / "met")]
        base = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        processes = [subprocess.Popen(words, env=base | env) for env in group]
        assert [process.wait(100) for process in processes] == [0] * len(group)
        results.append(torch.load(tmp_path / "out.pt", weights_only=True))
    one, two = results
    assert [one["world"], two["world"]] == [1, 2]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-4, atol=1e-6)


def images(epoch: int) -> Iterator[Batch]:
    for batch in batches(epoch):
        planes = batch.inputs[0].reshape(-1, 1, 2, 2).tile(1, 3, 2, 2)
        yield Batch(inputs=(planes,), targets=batch.targets, ids=batch.ids)


class Planes(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.head, self.how = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(64, 2), how
        self.strides: tuple[int, ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        self.strides = x.stride()
        y: torch.Tensor = self.head(x.flatten(1) if self.how == "flatten" else x.view(len(x), -1))
        return y


@pytest.mark.parametrize(("how", "strides"), [("flatten", (64, 1, 16, 4)), ("view", (64, 16, 4, 1))])
def test_convolutions_compute_channels_last_unless_the_model_views_its_images(
    how: str, strides: tuple[int, ...]
) -> None:
    m = Planes(how)
    fit(m, hard, images, FitSpec(epochs=1, batch_size=16), samples=48, accelerator=Accelerator(cpu=True))
    assert m.strides == strides


def test_a_fit_of_a_part_of_a_schedule_counts_epochs_and_steps_of_the_whole() -> None:
    steps: list[tuple[int, int]] = []
    hooks = FitHooks(before_step=lambda done, total: steps.append((done, total)))
    history = fitted(model(), epochs=4, first=1, last=3, hooks=hooks)
    assert [record.epoch for record in history] == [2, 3]
    assert steps == [(done, 12) for done in range(3, 9)]


def test_the_first_part_of_a_fit_gives_the_bits_of_the_whole_up_to_there() -> None:
    kept: dict[str, torch.Tensor] = {}
    whole, part = model(), model()
    torch.manual_seed(0)

    def keep(done: int, _total: int) -> None:
        if done == 6:
            kept.update({name: value.clone() for name, value in whole.state_dict().items()})

    fitted(whole, epochs=4, hooks=FitHooks(before_step=keep))
    torch.manual_seed(0)
    fitted(part, epochs=4, last=2)
    assert all(torch.equal(kept[name], value) for name, value in part.state_dict().items())
