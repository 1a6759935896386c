"""Conformance kit for the forms of a file that a target names for the stage `place`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.work.forms import Ranges

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from kdq_core.plugins.forms import Form, PlacingTarget
    from kdq_core.testing.toys import Toy

LAYERS = ("conv", "linear", "embedding", "lstm", "gru")
NEAR = 0.05
"""Largest difference between a form's file and its simulation, as a share of the largest output."""


@torch.no_grad()
def check_forms(target: PlacingTarget, toy: Toy) -> None:
    """Check every form that the target names for a small network.

    Raises:
        AssertionError: a form does not keep a promise; the text says which.
    """
    torch.manual_seed(0)
    x = toy.inputs(8, torch.Generator().manual_seed(0))
    graph = capture(toy.model().eval(), tuple(part[:2] for part in x))
    forms = target.forms(graph)
    names = [form.name for form in forms]
    assert len(set(names)) == len(names), f"each form should have a name of its own, but they are {names}"
    for form in forms:
        rows = _written(target.formed(form.options), graph, x, form)
        wrong = [name for name, int8 in rows.items() if int8 and name in form.floats]
        assert not wrong, f"the form {form.name!r} should leave {wrong[0]!r} in float, but it runs in int8"
        if form is forms[-1]:
            left = [name for name, int8 in rows.items() if int8 and name.rpartition(":")[2] in LAYERS]
            assert not left, f"the last form should leave every layer in float, but {left[0]!r} runs in int8"


def _written(formed: PlacingTarget, graph: GraphModule, x: tuple[torch.Tensor, ...], form: Form) -> dict[str, bool]:
    """Write and run a form; gives its operators as `path:type`, and whether each runs in int8."""
    model = prepare(graph, formed.places(graph), Ranges()).eval()
    set_phase(model, observe=True, quantize=False, freeze_batch_norm=True)
    model(*x)
    set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
    converted = convert(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        formed.export(converted, tuple(part[:2] for part in x), path)
        given = formed.session(path, threads=1).run(tuple(part.numpy() for part in x))[0]
        wanted = converted(*x).numpy()
        away = float(np.abs(wanted - given).max() / np.abs(wanted).max())
        assert away <= NEAR, f"the form {form.name!r} should give what its simulation gives, but differs by {away:.1%}"
        return {f"{row.path}:{row.operator}": row.int8 for row in formed.coverage(path, graph)}
