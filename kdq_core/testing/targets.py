"""Conformance kit for targets: it exports small networks, in float and quantized, and runs the files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from kdq_core.plugins.forms import PlacingTarget
from kdq_core.quantization.capture import capture
from kdq_core.testing.declared import Tell, described, silent
from kdq_core.testing.forms import check_forms
from kdq_core.testing.quantizers import check_quantizer
from kdq_core.testing.toys import CONV_NET, Toy
from kdq_core.work.forms import Ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import GraphModule

    from kdq_core.grids.place import Place
    from kdq_core.plugins.kinds import Target

CLOSE = 1e-3
"""Largest difference between a float model and its file, as a share of the largest output."""


class WeightRanges(Ranges):
    """The same for weights alone."""

    activations: ClassVar[Literal["static", "dynamic", "none"]] = "none"


def check_target(target: Target, *, toys: Sequence[Toy] = (CONV_NET,), tell: Tell = silent) -> None:
    """Check the promises of a target on small networks.

    - Each option has a description, and `resolved` gives the same plain values at each call.
    - `places` gives weights, each with a name of its own, at nodes of the graph.
    - The file of a float model gives the model's outputs for any batch size, and `signature` says so.
    - The quantized model keeps every promise that `check_quantizer` checks. If the target gives no place to an
      activation, only weights are quantized.
    - Each form that a target names for the stage `place` runs and gives what its simulation gives, with its operators
      in float; the last one has no layer in int8.

    Args:
        target: the plug-in, with the options to check.
        toys: the networks, such as `kdq_core.testing.TOYS`.
        tell: hears of each promise that is kept.

    Raises:
        AssertionError: a promise is broken; the text says which.
        StageError: the target refused a network.
    """
    described(target)
    values = target.resolved()
    plain = isinstance(values, dict) and all(isinstance(value, str | int | bool) for value in values.values())
    assert plain, f"resolved() should give a dict of texts, whole numbers and bools, but it gives {values!r}"
    assert values == target.resolved(), "resolved() should give the same at each call, but it does not"
    tell("options have descriptions, and `resolved` gives plain values")
    for toy in toys:
        graph = capture(toy.model(), toy.inputs(2, torch.Generator().manual_seed(0)))
        places = target.places(graph)
        check_places(graph, places)
        tell(f"places of the {toy.name} are sound")
        check_float_file(target, toy)
        tell(f"the float file of the {toy.name} gives what the model gives")
        static = any(place.role == "activation" for place in places)
        check_quantizer(Ranges() if static else WeightRanges(), target=target, toys=(toy,), tell=tell)
        if isinstance(target, PlacingTarget):
            check_forms(target, toy)
            tell(f"the forms of the {toy.name} give what their simulations give")


def check_places(graph: GraphModule, places: Sequence[Place]) -> None:
    """Check that there are weights, and that names are unique and nodes exist."""
    assert any(place.role == "weight" for place in places), "the target should give places to weights, but gives none"
    names = [place.name for place in places]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, f"each place should have a name of its own, but {twice[0]!r} is there twice"
    nodes = {node.name for node in graph.graph.nodes}
    lost = [place.name for place in places if place.node not in nodes]
    assert not lost, f"each place should be a node of the graph, but {lost[0]!r} is none"


@torch.no_grad()
def check_float_file(target: Target, toy: Toy) -> None:
    """Check that the file of a float model gives the model's outputs for two batch sizes."""
    torch.manual_seed(0)
    model, generator = toy.model().eval(), torch.Generator().manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        target.export(model, toy.inputs(2, generator), path)
        inputs, outputs = target.signature(path)
        session = target.session(path, threads=1)
        for size in (1, 5):
            x = toy.inputs(size, generator)
            wanted, given = model(*x), torch.as_tensor(session.run(tuple(part.numpy() for part in x))[0])
            gap = float((wanted - given).abs().max() / wanted.abs().max())
            assert gap <= CLOSE, (
                f"the file of a float model should give its outputs, but a batch of {size} differs by {gap:.2%}"
            )
    assert len(inputs) == len(x), f"signature() should name {len(x)} inputs, but it names {len(inputs)}"
    free = [spec.name for spec in (*inputs, *outputs) if not spec.shape or spec.shape[0] != -1]
    assert not free, f"signature() should give -1 for the batch size, but {free[0]!r} has another number"
