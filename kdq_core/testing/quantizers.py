"""Conformance kit for quantizers: it trains, converts, exports and runs small networks."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from kdq_core.grids.fake import FakeQuantize
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.quantization.placing import placed
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.recipe.spec import QuantizeSpec
from kdq_core.testing.declared import Tell, described, silent
from kdq_core.testing.toys import CONV_NET, Toy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import GraphModule
    from torch.nn import Module

    from kdq_core.plugins.kinds import Quantizer, Target
    from kdq_core.store.records import OperatorCoverage

SAMPLES = 256
EXACT = 0.01
"""Rounding error of float32 that the kit allows around a level, in LSB."""

COMPUTING = ("conv", "linear", "lstm", "gru")


def check_quantizer(
    quantizer: Quantizer,
    *,
    target: Target,
    bits: tuple[int, int] = (8, 8),
    toys: Sequence[Toy] = (CONV_NET,),
    tell: Tell = silent,
) -> None:
    """Check the promises of a quantizer on small networks, through to `target`'s runtime.

    - Each option has a description.
    - The prepared model trains, with finite gradients that are not all zero.
    - Zero points are whole numbers, in a tensor of integers.
    - In eval mode, the same samples give the same outputs.
    - The same seed gives the same model, and safetensors save and load its state bit for bit.
    - Scoring changes nothing.
    - Rounding a second time changes nothing, unless the class says `idempotent: ClassVar[bool] = False`.
    - The outputs of the converted model are within `tolerance_lsb` of the prepared model's (99 % of the values).
    - The outputs of the exported file are within one LSB of the converted model's (99 % of the values), with the same
      answers except on ties.
    - Every conv, linear and recurrent layer runs in an int8 kernel. With dynamic ranges, only linear layers must. With
      float activations, no layer must. For every layer in float, coverage gives the reason.

    Args:
        quantizer: the plug-in, with the options to check.
        target: the target that exports and runs the networks.
        bits: bits of weights and of activations, as in a recipe; first and last layer keep 8.
        toys: the networks, such as `kdq_core.testing.TOYS`, which cover all families of operators.
        tell: hears of each promise that is kept.

    Raises:
        AssertionError: a promise is broken; the text says which.
        StageError: a stage refused the model.
    """
    described(quantizer)
    tell("each option has a description")
    spec = QuantizeSpec(weights=bits[0], activations=bits[1])
    for toy in toys:
        try:
            _check(quantizer, target, spec, toy, tell)
        except AssertionError as error:
            raise AssertionError(f"{toy.name}: {error}" if len(toys) > 1 else str(error)) from error


def _check(quantizer: Quantizer, target: Target, spec: QuantizeSpec, toy: Toy, tell: Tell) -> None:
    x = toy.inputs(SAMPLES, torch.Generator().manual_seed(7))
    prepared = _trained(quantizer, target, spec, toy)
    tell(f"the {toy.name} trains with its fake-quantizers")
    _check_zero_points(prepared)
    tell("zero points are integers")
    _check_scoring(prepared, x)
    tell("scoring changes nothing")
    _check_repeats(prepared, x)
    tell("eval mode gives the same outputs at each call")
    _check_determinism(prepared, _trained(quantizer, target, spec, toy))
    _check_reload(prepared, _prepared(quantizer, target, spec, toy), x)
    tell("the same seed gives the same model, and its file too")
    if type(quantizer).idempotent:
        _check_idempotence(prepared, x)
        tell("rounding twice is rounding once")
    _check_conversion(quantizer, target, toy, prepared, x, tell)


def _check_conversion(
    quantizer: Quantizer, target: Target, toy: Toy, prepared: GraphModule, x: tuple[Tensor, ...], tell: Tell
) -> None:
    converted = convert(prepared)
    (scale,) = output_scales(converted)
    static = quantizer.activations == "static"
    assert scale is not None or not static, "the target should place a quantizer on the output, but it did not"
    with torch.no_grad():
        simulated, integers = prepared(*x), converted(*x)
    lsb = float(integers.abs().max()) / 127 if scale is None else scale
    _check_close(simulated, integers, lsb, quantizer.tolerance_lsb, "the converted model", "the prepared one")
    tell("the integers give what the training saw")
    rows = _check_file(converted, target, toy, x, integers, lsb)
    tell("the file gives what the integers give")
    computing = {"static": COMPUTING, "dynamic": ("linear",), "none": ()}[quantizer.activations]
    slow = [f"{row.path} ({row.reason})" for row in rows if row.operator in computing and not row.int8]
    assert not slow, f"every conv and linear should run in an int8 kernel, but these do not: {', '.join(slow)}"
    mute = [row.path for row in rows if row.operator in COMPUTING and not row.int8 and not row.reason]
    assert not mute, f"every conv and linear in float should say why, but these do not: {', '.join(mute)}"
    tell("the runtime computes layers in int8, or says why not")


@functools.lru_cache(maxsize=16)
def _graph(toy: Toy) -> GraphModule:
    """Capture the toy. The graph is shared: `prepare` copies it, and no check changes it."""
    torch.manual_seed(0)
    return capture(toy.model(), toy.inputs(2, torch.Generator().manual_seed(0)))


def _prepared(quantizer: Quantizer, target: Target, spec: QuantizeSpec, toy: Toy) -> GraphModule:
    graph = _graph(toy)
    low = min(spec.weights, spec.activations) < 8
    return prepare(graph, placed(graph, target, quantizer, spec).places, quantizer, round_bias=low)


def _trained(quantizer: Quantizer, target: Target, spec: QuantizeSpec, toy: Toy) -> GraphModule:
    """Train a prepared model for a few steps, and give it in eval mode with observers off."""
    prepared = _prepared(quantizer, target, spec, toy)
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    data = torch.Generator().manual_seed(1)
    seen: dict[str, float] = {}
    for step in range(8):
        set_phase(prepared, observe=step < 6, quantize=True, freeze_batch_norm=False)
        x, y = toy.inputs(32, data), torch.randint(toy.classes, (32,), generator=data)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(prepared(*x), y))
        for name, parameter in prepared.named_parameters():
            assert parameter.grad is not None, (
                f"{_blocked(prepared, x)}parameter {name!r} should get a gradient, but got none"
            )
            norm = float(parameter.grad.norm())
            assert norm < float("inf"), f"the gradient of {name!r} should be finite, but its norm is {norm}"
            seen[name] = seen.get(name, 0.0) + norm
        optimizer.step()
    dead = sorted(name for name, total in seen.items() if total == 0)
    assert not dead, (
        f"{_blocked(prepared, toy.inputs(32, data))}every parameter should get a gradient, but these got zero in 8 "
        f"steps: {', '.join(dead)}"
    )
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    prepared.eval()
    return prepared


def _blocked(prepared: GraphModule, x: tuple[Tensor, ...]) -> str:
    """Word which fake-quantizer gives its input no gradient; empty if all give one."""
    for module, seen in _seen(prepared, x).items():
        leaf = seen.detach().clone().requires_grad_()
        y = module(leaf)
        if y.requires_grad:
            torch.autograd.backward(y.sum())
        if leaf.grad is None or not leaf.grad.any():
            return (
                f"no straight-through gradient: `round` has none; the fake-quantizer of {module.place.name!r} gives "
                "its input no gradient: return x + (rounded - x).detach() inside the range; "
            )
    return ""


def _seen(prepared: GraphModule, x: tuple[Tensor, ...]) -> dict[FakeQuantize, Tensor]:
    """Give the input of each fake-quantizer."""
    seen: dict[FakeQuantize, Tensor] = {}

    def keep(module: Module, given: tuple[Tensor, ...]) -> None:
        seen[cast(FakeQuantize, module)] = given[0]

    hooks = [m.register_forward_pre_hook(keep) for m in prepared.modules() if isinstance(m, FakeQuantize)]
    with torch.no_grad():
        prepared(*x)
    for hook in hooks:
        hook.remove()
    return seen


def _check_zero_points(prepared: GraphModule) -> None:
    for module in prepared.modules():
        if isinstance(module, FakeQuantize):
            zero = module.grid().zero_point
            assert not zero.is_floating_point(), (
                f"the zero point of {module.place.name!r} should be a tensor of integers, but it is {zero.dtype}; give "
                "Grid(scale, zero.round().to(torch.int32), ...)"
            )


@torch.no_grad()
def _check_repeats(prepared: GraphModule, x: tuple[Tensor, ...]) -> None:
    if torch.equal(prepared(*x), prepared(*x)):
        return
    odd = [module for module, seen in _seen(prepared, x).items() if not torch.equal(module(seen), module(seen))]
    where = f"the fake-quantizer of {odd[0].place.name!r}" if odd else "the quantized model"
    raise AssertionError(
        f"random in eval mode: {where} gives other outputs for the same samples at each call; draw random numbers only "
        "while `training` is set"
    )


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """List the names of the entries that differ in a bit."""
    return [name for name in sorted(one.keys() | other.keys()) if not _same(one.get(name), other.get(name))]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)


def _check_determinism(one: GraphModule, other: GraphModule) -> None:
    moved = _difference(one.state_dict(), other.state_dict())
    assert not moved, f"the same seed should give the same model, but these differ: {', '.join(moved)}"


def _check_reload(prepared: GraphModule, fresh: GraphModule, x: tuple[Tensor, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: value.contiguous() for name, value in prepared.state_dict().items()}, path)
        fresh.load_state_dict(load_file(path))
    moved = _difference(prepared.state_dict(), fresh.state_dict())
    assert not moved, f"a reloaded state should be the same, but these differ: {', '.join(moved)}"
    set_phase(fresh, observe=False, quantize=True, freeze_batch_norm=True)
    fresh.eval()
    with torch.no_grad():
        same = torch.equal(fresh(*x), prepared(*x))
    assert same, "a reloaded model should give the same outputs, but it does not: it keeps state outside its buffers"


def _check_scoring(prepared: GraphModule, x: tuple[Tensor, ...]) -> None:
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    with torch.no_grad():
        prepared(*(3 * part if part.is_floating_point() else part for part in x))
    moved = _difference(before, prepared.state_dict())
    assert not moved, f"scoring should change nothing, but it changed {', '.join(moved)}"


@torch.no_grad()
def _check_idempotence(prepared: GraphModule, x: tuple[Tensor, ...]) -> None:
    """Check that rounding twice is rounding once; observers of `prepared` are off, so that ranges do not change."""
    rounded: dict[FakeQuantize, Tensor] = {}

    def keep(module: Module, _: object, y: Tensor) -> None:
        rounded[cast(FakeQuantize, module)] = y

    hooks = [m.register_forward_hook(keep) for m in prepared.modules() if isinstance(m, FakeQuantize)]
    prepared(*x)
    for hook in hooks:
        hook.remove()
    for module, y in rounded.items():
        lsb = float(((module(y) - y).abs() / module.grid().spread(y)).max())
        assert lsb < EXACT, (
            f"what is rounded should stay where it is when it is rounded again, but {module.place.name!r} moves it by "
            f"{lsb:.2f} LSB; round to the nearest level, or, if the method means to move it, set `idempotent: "
            "ClassVar[bool] = False` and say why in the method card"
        )


def _check_close(one: Tensor, other: Tensor, scale: float, tolerance: float, it: str, its_model: str) -> None:
    lsb = float(((one - other).abs() / scale).flatten().quantile(0.99))
    assert lsb <= tolerance + 0.01, f"{it} should be within {tolerance} LSB of {its_model}, but p99 is {lsb:.2f} LSB"


def _check_file(
    converted: GraphModule, target: Target, toy: Toy, x: tuple[Tensor, ...], integers: Tensor, scale: float
) -> tuple[OperatorCoverage, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        target.export(converted, tuple(part[:2] for part in x), path)
        answers = torch.as_tensor(target.session(path, threads=1).run(tuple(part.numpy() for part in x))[0])
        operators = target.coverage(path, _graph(toy))
    _check_close(integers, answers, scale, 1.0, "the exported file", "the converted model")
    flips = int((integers.argmax(1).ne(answers.argmax(1)) & ~_tied(integers) & ~_tied(answers)).sum())
    assert flips == 0, f"the exported file should give the converted model's answers, but {flips} of {SAMPLES} differ"
    return operators


def _tied(logits: Tensor) -> Tensor:
    best = logits.topk(2, dim=1).values
    return best[:, 0] == best[:, 1]
