"""Where a quantized student loses quality: each layer's weights and results, quantized alone, and all but them.

What: runs the simulation of the int8 file node by node and keeps what each node gives, once in float and once
    quantized. Then it switches one group of fake-quantizers on or off, and runs only the nodes behind them. The groups
    are the weights of a layer, and its results.
Formula: SQNR = 10 log10(sum x^2 / sum (x_q - x)^2), in dB, over a tensor or over the model's outputs. Outliers: the
    range of the widest channel over that of the median channel. Clipped: share of values outside of the grid.
    A rule is tried with the places that the target would quantize then: a layer in float frees its inputs, but not its
    result, if the next layer takes integers.
Limits: the simulation, not the file; both differ by at most an LSB where the evaluator `parity` finds no flips. The
    effects of two layers need not add up, so the predicted quality of several rules is measured with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from kdq_core.errors import KdqError
from kdq_core.grids.fake import FakeQuantize
from kdq_core.quantization.placing import placed
from kdq_core.quantization.prepare import set_phase
from kdq_core.quantization.rows import look_up_tables
from kdq_core.recipe.spec import QuantizeSpec, Rule
from kdq_core.tensors import Batch
from kdq_core.work.effects import Effect, Explained

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Quantizer, Target

MOST_TRIES = 24
"""Sets of rules that are tried."""
ENOUGH = 0.003
"""Share of right answers below float that is as good as float."""
QUIET = 20.0
"""SQNR of outputs without classes that is good enough: the noise has a hundredth of the signal's energy."""
NOTHING = 1e-30
Places = Callable[[Sequence[Rule]], Mapping[str, int] | None]


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

    @property
    def at(self) -> list[fx.Node]:
        """The nodes of the fake-quantizers."""
        return [node for node, _ in self.nodes]


class Replay:
    """A prepared model that runs again from any of its fake-quantizers on."""

    def __init__(self, model: fx.GraphModule) -> None:
        """Hold the model, in eval mode and with whole tables, and find its groups."""
        look_up_tables(model)
        self.model = model.eval()
        self.groups = _groups(model)

    def kept(self, inputs: Sequence[Tensor], *, quantize: bool) -> tuple[dict[fx.Node, Any], Tensor]:
        """Run the model with all fake-quantizers on or off; gives the value of each node, and the first output."""
        set_phase(self.model, observe=False, quantize=quantize, freeze_batch_norm=True)
        interpreter = fx.Interpreter(self.model, garbage_collect_values=False)
        given = first_output(interpreter.run(*inputs))
        return interpreter.env, given

    def switched(
        self, kept: Mapping[fx.Node, Any], nodes: Sequence[fx.Node], inputs: Sequence[Tensor], *, on: bool
    ) -> Tensor:
        """Switch some fake-quantizers on or off, run what is behind them, and switch back; gives the first output."""
        fakes = [self.model.get_submodule(str(node.target)) for node in nodes]
        behind = _behind(nodes)
        before = {node: value for node, value in kept.items() if node not in behind}
        try:
            for fake in fakes:
                fake.quantizing = on  # type: ignore[assignment]
            return first_output(fx.Interpreter(self.model).run(*inputs, initial_env=before))
        finally:
            for fake in fakes:
                fake.quantizing = not on  # type: ignore[assignment]

    def candidates(self, worst: Sequence[Group]) -> list[tuple[str, ...]]:
        """Layers that rules might mend, worst first; some only together.

        The result of a layer stays quantized while one of the layers that read it takes integers.
        """
        stops = {node: group.layer for group in self.groups for node in group.at}
        for group in self.groups:
            if group.role == "weights":
                stops |= {user: group.layer for node in group.at for user in node.users}
        found: dict[tuple[str, ...], None] = {}
        for group in worst:
            readers = [one for node in group.at for one in _next(node, stops)] if group.role == "activations" else []
            together = tuple(dict.fromkeys(layer for layer in (group.layer, *readers) if layer != "input"))
            found |= dict.fromkeys((together, *((layer,) for layer in together)))
        return [layers for layers in found if layers]


@torch.no_grad()
def explain(model: fx.GraphModule, batches: Sequence[Batch], places: Places) -> Explained:
    """Find what each group of fake-quantizers does to the outputs.

    Args:
        model: from `Work.quantized`, with its trained ranges.
        batches: the samples; memory holds the inner tensors of one batch, twice.
        places: gives the places that get quantizers with further rules; see `places_with`.
    """
    replay, shipped, in_float = Replay(model), Sums(), Sums()
    samples = 0
    for batch in batches:
        labels = _labels(batch)
        exact_env, exact = replay.kept(batch.inputs, quantize=False)
        in_float.add(exact, exact, _fitting(labels, exact))
        for group in replay.groups:
            _look(group, exact_env)
            group.alone.add(replay.switched(exact_env, group.at, batch.inputs, on=True), exact, _fitting(labels, exact))
        rounded_env, rounded = replay.kept(batch.inputs, quantize=True)
        shipped.add(rounded, exact, _fitting(labels, exact))
        for group in replay.groups:
            given = replay.switched(rounded_env, group.at, batch.inputs, on=False)
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
    return _mended(replay, batches, replay.candidates(worst), places, found)


def places_with(graph: fx.GraphModule, target: Target, quantizer: Quantizer, spec: QuantizeSpec) -> Places:
    """Make a function that gives the bits of each place with further rules, or `None` if these cannot be followed."""

    def places(rules: Sequence[Rule]) -> Mapping[str, int] | None:
        try:
            found = placed(graph, target, quantizer, spec.model_copy(update={"rules": (*spec.rules, *rules)}))
        except KdqError:
            return None
        return {place.name: place.bits for place in found.places}

    return places


def _mended(
    replay: Replay, batches: Sequence[Batch], candidates: Sequence[tuple[str, ...]], places: Places, found: Explained
) -> Explained:
    """Add rules for the worst layers, one after the other, until the quality is that of float; then drop needless ones.

    A tensor passes its outliers on, so one layer left in float may help only together with those behind it.
    """
    known = found.in_float is not None and found.quantized is not None
    right = round((found.quantized or 0.0) * found.samples)
    enough = ((found.in_float or 0.0) - ENOUGH) * found.samples

    def good(sums: Sums) -> bool:
        return sums.right >= enough if known else sums.db >= QUIET

    best = Sums(right=right, signal=1.0, noise=10 ** (-found.quantized_db / 10))
    if good(best):
        return found

    def tried(layers: Sequence[str]) -> Sums | None:
        bits = places([_rule(layer, replay.groups) for layer in layers])
        if bits is None:
            return None
        off = [
            n for group in replay.groups for n, fake in group.nodes if bits.get(fake.place.name, 32) > fake.place.bits
        ]
        sums = Sums()
        for batch in batches:
            _, exact = replay.kept(batch.inputs, quantize=False)
            env, _ = replay.kept(batch.inputs, quantize=True)
            sums.add(replay.switched(env, off, batch.inputs, on=False), exact, _fitting(_labels(batch), exact))
        return sums

    kept: list[str] = []
    left, tries = list(candidates), 0
    while left and tries < MOST_TRIES and not good(best):
        more, tries = left.pop(0), tries + 1
        both = list(dict.fromkeys((*kept, *more)))
        sums = tried(both)
        if sums is not None and (sums.right, sums.db) > (best.right, best.db + 1):
            best, kept = sums, both
            left = [one for one in candidates if not set(one) <= set(kept)]  # what did not help alone may help now
    for layer in kept if len(kept) > 1 else ():
        sums = tried([one for one in kept if one != layer])
        if sums is not None and sums.right >= best.right and (known or good(sums)):
            best, kept = sums, [one for one in kept if one != layer]
    if not kept or (known and best.right <= right):
        return found
    rules = tuple(_rule(layer, replay.groups) for layer in kept)
    share = best.right / found.samples if known else None
    return found.model_copy(update={"rules": rules, "predicted": share, "predicted_db": round(best.db, 2)})


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


def _next(start: fx.Node, stops: Mapping[fx.Node, str]) -> Iterator[str]:
    """Yield the layers at the next of `stops` on each path from `start`."""
    seen: set[fx.Node] = set()
    left = list(start.users)
    while left:
        node = left.pop(0)
        if node in stops:
            yield stops[node]
        elif node not in seen:
            seen.add(node)
            left += node.users


def first_output(given: Any) -> Tensor:
    """The first output of a model, which gives a tensor, a tuple or a dict."""
    values = list(given.values()) if isinstance(given, Mapping) else given
    found = values[0] if isinstance(values, list | tuple) else values
    assert isinstance(found, Tensor)
    return found


def classes_of(batch: Batch, shape: Sequence[int]) -> np.ndarray | None:
    """The classes of a batch, `[B]`; `None` if its labels are no classes of an output of the shape `[N, C]`."""
    labels = _labels(batch)
    fits = labels is not None and not labels.is_floating_point() and labels.dim() == 1 and len(shape) == 2
    return labels.numpy() if labels is not None and fits and shape[1] > 1 else None


def _labels(batch: Batch) -> Tensor | None:
    return batch.targets if not batch.tasks else next(iter(batch.tasks.values()))


def _fitting(labels: Tensor | None, output: Tensor) -> Tensor | None:
    """The labels, if they are classes of this output."""
    fits = labels is not None and not labels.is_floating_point() and labels.dim() == 1 and output.dim() == 2
    return labels if fits and output.shape[1] > 1 else None
