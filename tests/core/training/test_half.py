"""A fit with its forward passes in bf16: what is in bf16, what stays in float32, and that it resumes."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kdq_core.errors import TransientError
from kdq_core.recipe.spec import FitSpec
from kdq_core.store.records import EpochRecord
from kdq_core.tensors import Batch
from kdq_core.training.fit import FitHooks, fit
from kdq_core.training.half import in_bf16
from kdq_core.training.stopping import Stop

CPU = torch.device("cpu")


def batches(epoch: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(epoch)
    for start in range(0, 48, 16):
        targets = torch.arange(16) % 2
        x = torch.randn(16, 1, 6, 6, generator=generator) + targets[:, None, None, None]
        yield Batch(inputs=(x,), targets=targets, ids=torch.arange(start, start + 16))


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 2)
    )


def hard(m: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return {"hard": nn.functional.cross_entropy(m(*batch.inputs), batch.targets)}


def fitted(
    m: nn.Module, loss: Any = hard, *, half: bool = True, epochs: int = 3, **given: Any
) -> tuple[EpochRecord, ...]:
    spec = FitSpec(epochs=epochs, batch_size=16, learning_rate=0.05)
    torch.manual_seed(7)
    return fit(m, loss, batches, spec, samples=48, accelerator=Accelerator(cpu=True), half=half, **given)


def test_the_loss_is_near_that_of_fp32_and_is_not_the_same() -> None:
    full, half = fitted(model(), half=False, epochs=6), fitted(model(), epochs=6)
    for one, other in zip(full, half, strict=True):
        assert other.values["train/loss"] == pytest.approx(one.values["train/loss"], abs=0.05)
    assert full != half
    assert half[-1].values["train/loss"] < 0.8 * half[0].values["train/loss"]


def test_products_are_in_bf16_and_weights_statistics_and_losses_in_float32() -> None:
    trained, products, losses = model(), [], []

    def see(layer: nn.Module, _inputs: Any, given: Tensor) -> None:
        if layer.training:  # in eval mode KDQ looks at the layout once
            products.append(given.dtype)

    trained[0].register_forward_hook(see)  # type: ignore[index, operator]

    def loss(m: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = m(*batch.inputs)
        losses.append((logits.dtype, (logits @ logits.T).dtype, torch.is_autocast_enabled("cpu")))
        return {"hard": nn.functional.cross_entropy(logits, batch.targets)}

    fitted(trained, loss)
    assert set(products) == {torch.bfloat16}
    assert set(losses) == {(torch.float32, torch.float32, False)}
    floats = [value for value in trained.state_dict().values() if value.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in floats)


def test_scoring_is_in_float32_and_so_is_the_model_afterwards() -> None:
    trained, scored = model(), []
    x = next(batches(0)).inputs

    def score(m: nn.Module) -> dict[str, float]:
        twin = model().eval()
        twin.load_state_dict(m.state_dict())
        scored.append(torch.equal(m(*x), twin(*x)))
        return {}

    fitted(trained, hooks=FitHooks(score=score))
    assert scored == [True] * 3
    assert "forward" not in vars(trained)


def test_a_fit_that_was_stopped_within_an_epoch_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, cut = model(), model()
    wanted = fitted(whole)
    stop = Stop()

    def ask(done: int, _total: int) -> None:
        if done == 4:
            stop.asked = True

    state = tmp_path / "fit.safetensors"
    with pytest.raises(TransientError):
        fitted(cut, resume=state, hooks=FitHooks(after_step=ask, stop=stop))
    again = model()
    assert fitted(again, resume=state) == wanted
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_micro_batches_after_a_lack_of_memory_compute_in_bf16_too(tmp_path: Path) -> None:
    seen: list[tuple[int, torch.dtype]] = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 8:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            given = super().forward(x)
            seen.append((len(x), given.dtype))
            return given

    fitted(nn.Sequential(nn.Flatten(), Counting(36, 2)), epochs=1, resume=tmp_path / "fit.safetensors")
    assert set(seen) == {(8, torch.bfloat16)}


def test_several_outputs_are_float32_and_a_forward_of_the_module_itself_comes_back() -> None:
    plain = nn.Linear(4, 2)
    own = lambda x: {"a": nn.functional.linear(x, plain.weight), "b": x}  # noqa: E731
    vars(plain)["forward"] = own
    x = torch.randn(3, 4)
    with in_bf16(plain, CPU):
        given: Any = plain(x)
    assert {name: value.dtype for name, value in given.items()} == {"a": torch.float32, "b": torch.float32}
    assert torch.equal(given["a"], given["a"].bfloat16().float())
    assert vars(plain)["forward"] is own
    with in_bf16(plain, CPU, half=False):
        assert vars(plain)["forward"] is own


@pytest.mark.parametrize("made", [lambda: nn.GRU(4, 8, batch_first=True), lambda: nn.LSTM(4, 8, batch_first=True),
                                  lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)])  # fmt: skip
def test_recurrent_layers_and_attention_train_in_bf16(made: Any) -> None:
    one = made()
    twin = copy.deepcopy(one)
    x = torch.randn(2, 5, 4)
    with in_bf16(one, CPU):
        given = one(x)
    given = given[0] if isinstance(given, tuple) else given
    plain = twin(x)
    given.square().mean().backward()
    assert given.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in one.parameters())
    assert not isinstance(plain, tuple) or torch.allclose(given, plain[0], atol=0.05)
