"""The departures of a file from its simulation name the layer where they part, in both runtimes."""

import pytest
import torch

from kdq_core.api import departures_of_conversion
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert
from kdq_core.quantization.placing import placed
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.recipe.spec import QuantizeSpec
from kdq_core.testing.toys import CONV_NET
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_targets.openvino_cpu import OpenVinoCpu


@pytest.fixture(scope="module", params=[OnnxRuntimeCpu, OpenVinoCpu])
def shipped(request, tmp_path_factory):
    """Target, file, prepared and converted model at 4 bits, and a batch."""
    target, path = request.param(reduce_range="on"), tmp_path_factory.mktemp("departures") / "model.onnx"
    torch.manual_seed(0)
    x = CONV_NET.inputs(64, torch.Generator().manual_seed(0))
    graph = capture(CONV_NET.model(), x)
    spec = QuantizeSpec(weights=4, activations=4)
    prepared = prepare(graph, placed(graph, target, MinMaxQat(), spec).places, MinMaxQat(), round_bias=True)
    set_phase(prepared, observe=True, quantize=False, freeze_batch_norm=False)
    prepared(*x)
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    converted = convert(prepared.eval())
    target.export(converted, x, path)
    return target, path, prepared, converted, x


def departed(shipped, simulation):
    target, path, _, _, x = shipped
    return target.departures(path, simulation, tuple(part.numpy() for part in x), threads=1)


def test_a_file_that_gives_its_simulations_integers_departs_nowhere(shipped):
    _, _, prepared, converted, x = shipped
    assert departed(shipped, converted) == ()
    assert departures_of_conversion(prepared, converted, x) == ()


def test_the_first_layer_that_departs_is_named(shipped):
    _, _, prepared, converted, x = shipped
    weight = next(value for name, value in converted.named_buffers() if name.endswith("conv2d_1_weight_scale"))
    kept = weight.clone()
    weight.mul_(2)
    try:
        found, of_conversion = departed(shipped, converted), departures_of_conversion(prepared, converted, x)
    finally:
        weight.copy_(kept)
    assert (found[0].path, found[0].operator) == ("depthwise", "conv2d_1")
    assert found[0].share > 0.01
    assert found[0].most >= 1
    assert "stem" not in {one.path for one in found}
    assert of_conversion[0].operator == "relu_1"
    assert of_conversion[0].share == pytest.approx(found[0].share)
    assert of_conversion[0].most == found[0].most
