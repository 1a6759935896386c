"""Conformance kit for quantizers: a small network goes all the way to the runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.quantization.prepare import prepare, set_phase

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from kdq_core.kinds import Quantizer, Target

SAMPLES = 256


class ToyNet(nn.Module):
    """Conv, depthwise conv, residual add, pooling and linear in 1,300 parameters. Input `[B, 1, 8, 8]`, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.pointwise = nn.Conv2d(12, 12, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 10]`."""
        x = F.relu(self.stem(x))
        y = F.relu(self.norm1(self.depthwise(x)))
        x = F.max_pool2d(F.relu(self.norm2(self.pointwise(y)) + x), 2)
        logits: Tensor = self.head(torch.flatten(F.avg_pool2d(x, 2), 1))
        return logits


def check_quantizer(quantizer: Quantizer, *, target: Target) -> None:
    """Check the promises of a quantizer on a small network, through to `target`'s runtime.

    The prepared model trains, with finite gradients that are not all zero; the same seed gives the same model; its
    state survives safetensors bit for bit; scoring changes nothing; the converted model gives the prepared one's
    outputs within `tolerance_lsb` (99 % of the values); the exported file gives the converted model's within one LSB
    with no other answer except on ties; every conv and linear runs in an int8 kernel.

    Args:
        quantizer: the plug-in, with the options to check.
        target: where it is to run.

    Raises:
        AssertionError: a promise is broken; the text says which.
        StageError: a stage refused the model.
    """
    prepared = _trained(quantizer, target)
    x = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    _check_determinism(prepared, _trained(quantizer, target))
    _check_reload(prepared, quantizer, target, x)
    _check_scoring(prepared, x)
    converted = convert(prepared)
    (scale,) = output_scales(converted)
    assert scale is not None, "the target should place a quantizer on the output, but it did not"
    with torch.no_grad():
        simulated, integers = prepared(x), converted(x)
    _check_close(simulated, integers, scale, quantizer.tolerance_lsb, "the converted model", "the prepared one")
    _check_file(converted, target, x, integers, scale)


def _graph() -> GraphModule:
    torch.manual_seed(0)
    return capture(ToyNet(), (torch.zeros(2, 1, 8, 8),))


def _trained(quantizer: Quantizer, target: Target) -> GraphModule:
    """A prepared model after a few steps, in eval mode with its ranges standing still."""
    graph = _graph()
    prepared = prepare(graph, target.places(graph), quantizer)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    data = torch.Generator().manual_seed(1)
    seen: dict[str, float] = {}
    for step in range(8):
        set_phase(prepared, observe=step < 6, quantize=True, freeze_batch_norm=False)
        x, y = torch.randn(32, 1, 8, 8, generator=data), torch.randint(10, (32,), generator=data)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(prepared(x), y))
        for name, parameter in prepared.named_parameters():
            assert parameter.grad is not None, f"parameter {name!r} should get a gradient, but got none"
            norm = float(parameter.grad.norm())
            assert norm < float("inf"), f"the gradient of {name!r} should be finite, but its norm is {norm}"
            seen[name] = seen.get(name, 0.0) + norm
        optimizer.step()
    dead = sorted(name for name, total in seen.items() if total == 0)
    assert not dead, f"every parameter should get a gradient, but these got zero in 8 steps: {', '.join(dead)}"
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    prepared.eval()
    return prepared


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of the entries that are not the same, bit for bit."""
    return [name for name in sorted(one.keys() | other.keys()) if not _same(one.get(name), other.get(name))]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)


def _check_determinism(one: GraphModule, other: GraphModule) -> None:
    moved = _difference(one.state_dict(), other.state_dict())
    assert not moved, f"the same seed should give the same model, but these differ: {', '.join(moved)}"


def _check_reload(prepared: GraphModule, quantizer: Quantizer, target: Target, x: Tensor) -> None:
    graph = _graph()
    fresh = prepare(graph, target.places(graph), quantizer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: value.contiguous() for name, value in prepared.state_dict().items()}, path)
        fresh.load_state_dict(load_file(path))
    moved = _difference(prepared.state_dict(), fresh.state_dict())
    assert not moved, f"a reloaded state should be the same, but these differ: {', '.join(moved)}"
    set_phase(fresh, observe=False, quantize=True, freeze_batch_norm=True)
    fresh.eval()
    with torch.no_grad():
        same = torch.equal(fresh(x), prepared(x))
    assert same, "a reloaded model should give the same outputs, but it does not: it keeps state outside its buffers"


def _check_scoring(prepared: GraphModule, x: Tensor) -> None:
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    with torch.no_grad():
        prepared(3 * x)
    moved = _difference(before, prepared.state_dict())
    assert not moved, f"scoring should change nothing, but it changed {', '.join(moved)}"


def _check_close(one: Tensor, other: Tensor, scale: float, tolerance: float, it: str, its_model: str) -> None:
    lsb = float(((one - other).abs() / scale).flatten().quantile(0.99))
    assert lsb <= tolerance + 0.01, f"{it} should be within {tolerance} LSB of {its_model}, but p99 is {lsb:.2f} LSB"


def _check_file(converted: GraphModule, target: Target, x: Tensor, integers: Tensor, scale: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        target.export(converted, (x[:2],), path)
        answers = torch.as_tensor(target.session(path, threads=1).run((x.numpy(),))[0])
        operators = target.coverage(path, _graph())
    _check_close(integers, answers, scale, 1.0, "the exported file", "the converted model")
    flips = int((integers.argmax(1).ne(answers.argmax(1)) & ~_tied(integers) & ~_tied(answers)).sum())
    assert flips == 0, f"the exported file should give the converted model's answers, but {flips} of {len(x)} differ"
    slow = [f"{row.path} ({row.reason})" for row in operators if row.macs and not row.int8]
    assert not slow, f"every conv and linear should run in an int8 kernel, but these do not: {', '.join(slow)}"


def _tied(logits: Tensor) -> Tensor:
    best = logits.topk(2, dim=1).values
    return best[:, 0] == best[:, 1]
