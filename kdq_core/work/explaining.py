"""Where a quantized student loses quality: each layer's weights and results, quantized alone, and all but them.

What: runs the simulation of the int8 file node by node and keeps what each node gives, once in float and once
    quantized. Then it switches one group of fake-quantizers on or off, and runs only the nodes behind them. The groups
    are the weights of a layer, and its results.
Formula: SQNR = 10 log10(sum x^2 / sum (x_q - x)^2), in dB, over a tensor or over the model's outputs. Outliers: the
    range of the widest channel over that of the median channel. Clipped: share of values outside of the grid.
Limits: the simulation, not the file; both differ by at most an LSB where the evaluator `parity` finds no flips. The
    effects of two layers need not add up, so the predicted quality of several rules is measured with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from kdq_core.grids.fake import FakeQuantize
from kdq_core.quantization.prepare import set_phase
from kdq_core.recipe.spec import Rule
from kdq_core.tensors import Batch
from kdq_core.work.effects import Effect, Explained

MOST_RULES = 8
ENOUGH = 0.001
"""Share of right answers below float that is as good as float."""
NOTHING = 1e-30


@dataclass
class Sums:
    """What is added up over batches: energies of signal and noise, and right answers."""

    signal: float = 0.0
    noise: float = 0.0
    right: int = 0

    def add(self, value: Tensor, exact: Tensor, labels: Tensor | None = None) -> None:
        """Add one batch of values beside the exact ones."""
        self.signal += float(exact.double().square().sum())
        self.noise += float((value.double() - exact.double()).square().sum())
        if labels is not None:
            self.right += int(((value.argmax(1) == labels) & (labels >= 0)).sum())

    @property
    def db(self) -> float:
        """The SQNR; 300 for no noise."""
        return 10 * math.log10(max(self.signal, NOTHING) / max(self.noise, self.signal * NOTHING, NOTHING))


@dataclass
class Group:
    """The fake-quantizers of one layer in one role, with their nodes."""

    layer: str
    role: str
    nodes: list[tuple[fx.Node, FakeQuantize]] = field(default_factory=list)
    own: Sums = field(default_factory=Sums)
    alone: Sums = field(default_factory=Sums)
    without: Sums = field(default_factory=Sums)
    clipped: int = 0
    values: int = 0
    low: float = math.inf
    high: float = -math.inf
    channels: Tensor | None = None


class Replay:
    """A prepared model that runs again from any of its fake-quantizers on."""

    def __init__(self, model: fx.GraphModule) -> None:
        """Hold the model, in eval mode, and find its groups."""
        self.model = model.eval()
        self.groups = _groups(model)

    def kept(self, inputs: Sequence[Tensor], *, quantize: bool) -> tuple[dict[fx.Node, Any], Tensor]:
        """Run the model with all fake-quantizers on or off; gives the value of each node, and the first output."""
        set_phase(self.model, observe=False, quantize=quantize, freeze_batch_norm=True)
        interpreter = fx.Interpreter(self.model, garbage_collect_values=False)
        given = _first(interpreter.run(*inputs))
        return interpreter.env, given

    def switched(
        self, kept: Mapping[fx.Node, Any], groups: Iterable[Group], inputs: Sequence[Tensor], *, on: bool
    ) -> Tensor:
        """Switch some groups on or off, run the nodes behind them, and switch back; gives the first output."""
        chosen = [pair for group in groups for pair in group.nodes]
        behind = _behind(node for node, _ in chosen)
        before = {node: value for node, value in kept.items() if node not in behind}
        try:
            for _, fake in chosen:
                fake.quantizing = on
            return _first(fx.Interpreter(self.model).run(*inputs, initial_env=before))
        finally:
            for _, fake in chosen:
                fake.quantizing = not on


@torch.no_grad()
def explain(model: fx.GraphModule, batches: Sequence[Batch]) -> Explained:
    """Find what each group of fake-quantizers does to the outputs.

    Args:
        model: from `Work.quantized`, with its trained ranges.
        batches: the samples; memory holds the inner tensors of one batch, twice.
    """
    replay, shipped, in_float = Replay(model), Sums(), Sums()
    samples = 0
    for batch in batches:
        labels = _labels(batch)
        exact_env, exact = replay.kept(batch.inputs, quantize=False)
        in_float.add(exact, exact, _fitting(labels, exact))
        for group in replay.groups:
            _look(group, exact_env)
            group.alone.add(replay.switched(exact_env, [group], batch.inputs, on=True), exact, _fitting(labels, exact))
        rounded_env, rounded = replay.kept(batch.inputs, quantize=True)
        shipped.add(rounded, exact, _fitting(labels, exact))
        for group in replay.groups:
            given = replay.switched(rounded_env, [group], batch.inputs, on=False)
            group.without.add(given, exact, _fitting(labels, exact))
        samples += len(batch.ids)
    known = bool(batches) and _fitting(_labels(batches[0]), exact) is not None
    worst = sorted(replay.groups, key=lambda group: (group.alone.right if known else 0, group.alone.db))
    found = Explained(
        samples=samples,
        in_float=in_float.right / samples if known else None,
        quantized=shipped.right / samples if known else None,
        quantized_db=shipped.db,
        effects=tuple(_effect(group, samples if known else 0) for group in worst),
    )
    return _mended(replay, batches, worst, found)


def _mended(replay: Replay, batches: Sequence[Batch], worst: Sequence[Group], found: Explained) -> Explained:
    """Add rules for the worst layers, one after the other, until the quality is that of float; then drop needless ones.

    A tensor passes its outliers on, so one layer left in float may help only together with those behind it.
    """
    if found.in_float is None or found.quantized is None or found.quantized >= found.in_float - ENOUGH:
        return found

    def tried(layers: Sequence[str]) -> Sums:
        sums = Sums()
        for batch in batches:
            _, exact = replay.kept(batch.inputs, quantize=False)
            env, _ = replay.kept(batch.inputs, quantize=True)
            off = [group for group in replay.groups if group.layer in layers]
            sums.add(replay.switched(env, off, batch.inputs, on=False), exact, _fitting(_labels(batch), exact))
        return sums

    enough = (found.in_float - ENOUGH) * found.samples
    kept: list[str] = []
    best = Sums(right=round(found.quantized * found.samples), signal=1.0, noise=10 ** (-found.quantized_db / 10))
    for layer in list(dict.fromkeys(group.layer for group in worst if group.layer != "input"))[:MOST_RULES]:
        sums = tried([*kept, layer])
        if (sums.right, sums.db) > (best.right, best.db + 1):
            best, kept = sums, [*kept, layer]
        if best.right >= enough:
            break
    for layer in kept[:-1]:
        sums = tried([one for one in kept if one != layer])
        if sums.right >= best.right:
            best, kept = sums, [one for one in kept if one != layer]
    if best.right <= found.quantized * found.samples:
        return found
    rules = tuple(_rule(layer, replay.groups) for layer in kept)
    return found.model_copy(
        update={"rules": rules, "predicted": best.right / found.samples, "predicted_db": round(best.db, 2)}
    )


def _rule(layer: str, groups: Sequence[Group]) -> Rule:
    """Eight bits for a layer that has fewer, else no integers at all."""
    bits = [fake.place.bits for group in groups if group.layer == layer for _, fake in group.nodes]
    if min(bits) >= 8:
        return Rule(match=layer, skip=True)
    roles = {group.role for group in groups if group.layer == layer}
    return Rule(match=layer, **{role: 8 for role in ("weights", "activations") if role in roles})


def _groups(model: fx.GraphModule) -> list[Group]:
    found: dict[tuple[str, str], Group] = {}
    for node in model.graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, FakeQuantize):
            layer = module.place.path or module.place.operator
            role = "weights" if module.place.role == "weight" else "activations"
            found.setdefault((layer, role), Group(layer, role)).nodes.append((node, module))
    return list(found.values())


def _look(group: Group, env: Mapping[fx.Node, Any]) -> None:
    """Compare the tensors of a group with their grids."""
    for node, fake in group.nodes:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        x: Tensor = env[source].relu() if fake.relu else env[source]
        grid = fake.grid()
        scale, zero = grid.spread(x), _spread(grid.zero_point, grid.spread(x))
        fake.quantizing = True
        group.own.add(fake(env[source]), x)
        fake.quantizing = False
        outside = (x < (grid.qmin - zero - 0.5) * scale) | (x > (grid.qmax - zero + 0.5) * scale)
        group.clipped, group.values = group.clipped + int(outside.sum()), group.values + x.numel()
        group.low, group.high = min(group.low, float(x.min())), max(group.high, float(x.max()))
        axis = (fake.place.axis or 0) if group.role == "weights" else 1
        if x.dim() > 1:
            widest = x.abs().movedim(axis, 0).reshape(x.shape[axis], -1).amax(1)
            same = group.channels is not None and group.channels.shape == widest.shape
            group.channels = torch.maximum(group.channels, widest) if same else widest  # type: ignore[arg-type]


def _spread(zero: Tensor, scale: Tensor) -> Tensor:
    """The zero points in the shape of the scales."""
    return zero.reshape(scale.shape) if zero.numel() == scale.numel() else zero.reshape(-1)[:1]


def _effect(group: Group, samples: int) -> Effect:
    grids = [fake.grid() for _, fake in group.nodes]
    ends = [
        (float(((g.qmin - g.zero_point) * g.scale).min()), float(((g.qmax - g.zero_point) * g.scale).max()))
        for g in grids
    ]
    median = 0.0 if group.channels is None else float(group.channels.median())
    widest = 0.0 if group.channels is None else float(group.channels.max())
    return Effect(
        layer=group.layer,
        role=group.role,
        bits=min(fake.place.bits for _, fake in group.nodes),
        sqnr_db=round(group.own.db, 2),
        clipped=group.clipped / max(1, group.values),
        outliers=widest / median if median else 1.0,
        calibrated=(min(low for low, _ in ends), max(high for _, high in ends)),
        seen=(group.low, group.high),
        alone_db=round(group.alone.db, 2),
        alone=group.alone.right / samples if samples else None,
        without_db=round(group.without.db, 2),
        without=group.without.right / samples if samples else None,
    )


def _behind(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes and all that depend on them."""
    found: set[fx.Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.users
    return found


def _first(given: Any) -> Tensor:
    values = list(given.values()) if isinstance(given, Mapping) else given
    found = values[0] if isinstance(values, list | tuple) else values
    assert isinstance(found, Tensor)
    return found


def _labels(batch: Batch) -> Tensor | None:
    return batch.targets if not batch.tasks else next(iter(batch.tasks.values()))


def _fitting(labels: Tensor | None, output: Tensor) -> Tensor | None:
    """The labels, if they are classes of this output."""
    fits = labels is not None and not labels.is_floating_point() and labels.dim() == 1 and output.dim() == 2
    return labels if fits and output.shape[1] > 1 else None
