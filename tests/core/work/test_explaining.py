"""Which layer costs a quantized student its quality."""

from __future__ import annotations

import pytest
import torch

from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Quantizer, Target
from kdq_core.quantization.capture import capture
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.recipe.spec import QuantizeSpec, Rule
from kdq_core.tensors import Batch
from kdq_core.testing.toys import ToyNet
from kdq_core.work.effects import Explained
from kdq_core.work.explaining import Places, Replay, explain, places_with


def sabotaged(layer: str) -> tuple[Replay, list[Batch], Places]:
    """A quantized net, one of whose channels has weights times 1000; and samples labelled as the float net answers."""
    torch.manual_seed(0)
    net = ToyNet().eval()
    x = torch.rand(128, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if layer:
            net.get_submodule(layer).weight[3] *= 1000
        labels = net(x).argmax(1)
    catalog = Catalog.load()
    target, quantizer = catalog.build("target", "onnxruntime-cpu"), catalog.build("quantizer", "minmax-qat")
    assert isinstance(target, Target)
    assert isinstance(quantizer, Quantizer)
    graph = capture(net, (x[:2],))
    model = prepare(graph, target.places(graph), quantizer).eval()
    set_phase(model, observe=True, quantize=False, freeze_batch_norm=True)
    with torch.no_grad():
        model(x)
    batches = [Batch((x[at : at + 64],), labels[at : at + 64], torch.arange(at, at + 64)) for at in (0, 64)]
    return Replay(model), batches, places_with(graph, target, quantizer, QuantizeSpec())


@pytest.fixture(scope="module")
def found() -> Explained:
    replay, batches, places = sabotaged("stem")
    return explain(replay.model, batches, places)


@pytest.mark.parametrize("layer", ["stem", "depthwise", "pointwise"])
def test_a_sabotaged_layer_is_found(layer: str) -> None:
    replay, batches, places = sabotaged(layer)
    origin = explain(replay.model, batches, places).origin
    assert origin is not None
    assert origin.layer == layer
    assert 300 < origin.outliers < 3000


def test_what_hurts_most_alone_comes_first(found: Explained) -> None:
    assert {effect.layer for effect in found.effects[:2]} == {"stem", "add"}  # both hold the channel times 1000
    shares = [effect.alone for effect in found.effects]
    assert shares == sorted(shares, key=lambda share: share or 0)
    assert found.in_float == 1.0
    assert found.quantized is not None
    assert found.quantized < 0.7


def test_the_proposed_rules_bring_the_quality_of_float_back_which_is_measured_with_all_of_them(
    found: Explained,
) -> None:
    assert Rule(match="stem", skip=True) in found.rules
    assert found.predicted is not None
    assert found.predicted >= 0.99
    replay, batches, places = sabotaged("stem")
    kept = places(found.rules)
    assert kept is not None
    right = 0
    for batch in batches:
        with torch.no_grad():
            env, _ = replay.kept(batch.inputs, quantize=True)
            off = [n for group in replay.groups for n, fake in group.nodes if fake.place.name not in kept]
            right += int((replay.switched(env, off, batch.inputs, on=False).argmax(1) == batch.targets).sum())
    assert right / 128 == found.predicted


def test_a_sound_net_needs_no_rule() -> None:
    replay, batches, places = sabotaged("")
    found = explain(replay.model, batches, places)
    assert (found.rules, found.predicted, found.origin) == ((), None, None)
    assert found.quantized is not None
    assert found.quantized >= 0.99
    assert all(effect.clipped < 0.02 and effect.alone_db > 30 for effect in found.effects)


def test_running_from_a_layer_on_gives_the_same_as_running_all() -> None:
    replay, batches, _ = sabotaged("")
    inputs = batches[0].inputs
    with torch.no_grad():
        env, rounded = replay.kept(inputs, quantize=True)
        assert torch.equal(replay.switched(env, replay.groups[-1].at, inputs, on=True), rounded)
        set_phase(replay.model, observe=False, quantize=True, freeze_batch_norm=True)
        for _, fake in replay.groups[3].nodes:
            fake.quantizing = False
        whole = replay.model(*inputs)
        assert torch.equal(replay.switched(env, replay.groups[3].at, inputs, on=False), whole)
        assert all(fake.quantizing for group in replay.groups for _, fake in group.nodes)  # switched back
        assert not torch.equal(whole, rounded)


def test_without_classes_the_outputs_alone_are_compared() -> None:
    replay, batches, places = sabotaged("stem")
    plain = [Batch(batch.inputs, None, batch.ids) for batch in batches]
    found = explain(replay.model, plain, places)
    assert (found.in_float, found.quantized) == (None, None)
    assert found.quantized_db > 20
    assert found.rules == ()  # such outputs are good enough
    assert found.origin is not None
    assert found.origin.layer == "stem"
