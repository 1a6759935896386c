"""Small models, trained for a moment, converted and written by a target."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_quantizers.minmax_qat import MinMaxQat


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
