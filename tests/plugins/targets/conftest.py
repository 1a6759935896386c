"""Small models, trained for a moment, converted and written by a target."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdq_core.plugins.catalog import Catalog
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.quantization.placing import placed
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.recipe.spec import QuantizeSpec
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_targets.openvino_cpu import OpenVinoCpu


def narrow(place, weights, activations):
    """The place with fewer bits; inputs, outputs and the layers `stem` and `head` keep 8."""
    bits = weights if place.role == "weight" else activations
    if bits == 8 or place.path in ("stem", "head") or place.name.endswith(":input"):
        return place
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if place.role == "weight" else (0, 2**bits - 1)
    return replace(place, bits=bits, qmin=max(low, place.qmin), qmax=high)


@pytest.fixture(scope="session")
def ship(tmp_path_factory):
    """Gives a function: model, sample shape, target and bits -> the files and what they were made of."""

    def shipped(model, shape, target, weights=8, activations=8, name="int8.onnx"):
        torch.manual_seed(0)
        example = (torch.randn(2, *shape),)
        graph = capture(model, example)
        places = tuple(narrow(place, weights, activations) for place in target.places(graph))
        prepared = prepare(graph, places, MinMaxQat())
        optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            prepared(torch.randn(16, *shape)).square().mean().backward()
            optimizer.step()
        set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
        converted = convert(prepared)
        path = tmp_path_factory.mktemp("shipped") / name
        target.export(converted, example, path)
        return SimpleNamespace(
            target=target, graph=graph, converted=converted, path=path, example=example, places=places, shape=shape
        )

    return shipped


@pytest.fixture(scope="session")
def both():
    """Gives a function: files -> answers of the converted model and of the file, on inputs three times too large."""

    def answers(files, samples=300):
        x = 3 * torch.randn(samples, *files.shape, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            simulated = files.converted(x).numpy()
        (given,) = files.target.session(files.path, threads=1).run((x.numpy(),))
        (scale,) = output_scales(files.converted)
        return np.abs(simulated - given) / (scale or 1.0)

    return answers


WAYS = [(OnnxRuntimeCpu, "static"), (OnnxRuntimeCpu, "minmax-qat"), (OpenVinoCpu, "static")]


@pytest.fixture(scope="session")
def simulated():
    """Gives a function: model or its graph, inputs, target, quantizer by name -> graph and prepared model, calibrated.

    A quantizer that trains takes two steps first. `inputs` makes samples from their number and a generator. Biases are
    rounded as in the file: an unrounded one moves up to one answer in twenty by a step.
    """

    def simulated(model, inputs, target, name, data):
        quantizer = Catalog.load().build("quantizer", name, {})
        graph = model if isinstance(model, torch.fx.GraphModule) else capture(model, inputs(2, data))
        places = placed(graph, target, quantizer, QuantizeSpec(use=name)).places
        prepared = prepare(graph, places, quantizer, round_bias=True)
        optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
        for _ in range(2 if quantizer.trains else 0):
            optimizer.zero_grad()
            sum(made.square().mean() for made in tensors(prepared(*inputs(16, data)))).backward()
            optimizer.step()
        set_phase(prepared.eval(), observe=True, quantize=False, freeze_batch_norm=True)
        with torch.no_grad():
            prepared(*inputs(64, data))
        set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
        return graph, prepared

    return simulated


def tensors(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else list(getattr(outputs, "values", lambda: outputs)())


@pytest.fixture(scope="session")
def compared():
    """Gives a function: model, prepared model, target, inputs, folder -> p99 of the difference in LSB.

    The float file must give what the model gives in torch, and the converted model what the prepared model gives. With
    `again`, the float file stands in the folder already.
    """

    def compared(model, prepared, target, inputs, folder, data, samples=64, again=False):
        converted, x = convert(prepared), inputs(samples, data)
        files = {"float": model, "int8": converted}
        for name, one in files.items():
            if name == "int8" or not again:
                target.export(one, inputs(2, data), folder / f"{name}.onnx")
        answers = {
            name: target.session(folder / f"{name}.onnx", threads=1).run(tuple(part.numpy() for part in x))
            for name in files
        }
        with torch.no_grad():
            made = [[one.numpy() for one in tensors(form(*x))] for form in (model, converted, prepared)]
        worst = 0.0
        scales = output_scales(converted) or [None] * len(made[0])
        for real, integers, rounded, file, int8, scale in zip(*made, *answers.values(), scales, strict=True):
            np.testing.assert_allclose(file, real, atol=1e-5 * np.abs(real).max())
            lsb = scale or np.ptp(integers) / 255
            assert np.quantile(np.abs(rounded - integers) / lsb, 0.99) <= 1.01
            worst = max(worst, float(np.quantile(np.abs(int8 - integers) / lsb, 0.99)))
        return worst

    return compared


@pytest.fixture(
    params=[WAYS[0], pytest.param(WAYS[1], marks=pytest.mark.rare), WAYS[2]],
    ids=["onnxruntime", "onnxruntime trained", "openvino"],
)
def rows_of(request, simulated, compared, tmp_path):
    """Gives a function: model and inputs -> coverage of its int8 file, after checks of the float and the int8 file.

    The float file gives what the model gives in torch; the int8 file gives what its simulation gives, to one LSB.
    """
    kind, name = request.param
    target = kind(reduce_range="on")

    def rows_of(model, inputs):
        data = torch.Generator().manual_seed(1)
        graph, prepared = simulated(model.eval(), inputs, target, name, data)
        assert compared(model, prepared, target, inputs, tmp_path, data) <= 1.01
        rows = target.coverage(tmp_path / "int8.onnx", graph)
        assert all(row.int8 == (row.reason == "") for row in rows)
        return rows

    return rows_of
