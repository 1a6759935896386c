"""Files for the kit of evaluators: a small network in float and in int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kdq_core.plugins.kinds import Subject
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.quantization.placing import placed
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.recipe.spec import QuantizeSpec
from kdq_core.tensors import Batch
from kdq_core.testing.toys import CONV_NET, Toy
from kdq_core.work.forms import Ranges

if TYPE_CHECKING:
    from pathlib import Path

    from kdq_core.plugins.kinds import Target
    from kdq_core.tensors import Batches

SAMPLES = 96


@torch.no_grad()
def toy_subjects(target: Target, folder: Path, *, toy: Toy = CONV_NET) -> tuple[Subject, Subject, Batches]:
    """Export a small, untrained network in int8 and in float.

    Args:
        target: writes and runs the files.
        folder: gets them.
        toy: the network.

    Returns:
        The int8 file, the float file, and three batches of random samples with labels of which some are right.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = toy.model().eval(), toy.inputs(SAMPLES, generator)
    graph, example = capture(model, tuple(part[:2] for part in x)), tuple(part[:2] for part in x)
    prepared = prepare(graph, placed(graph, target, Ranges(), QuantizeSpec()).places, Ranges())
    set_phase(prepared, observe=True, quantize=False, freeze_batch_norm=True)
    prepared.eval()(*x)
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    converted = convert(prepared)
    target.export(model, example, folder / "student.onnx")
    target.export(converted, example, folder / "int8.onnx")
    baseline = Subject(role="student", path=folder / "student.onnx", target=target, threads=1)
    int8 = Subject(
        role="int8",
        path=folder / "int8.onnx",
        target=target,
        threads=1,
        operators=target.coverage(folder / "int8.onnx", graph),
        output_scales=output_scales(converted),
        simulation=converted,
        prepared=prepared,
    )
    labels = model(*x).argmax(1)
    labels[::3] = torch.randint(toy.classes, (len(labels[::3]),), generator=generator)

    def batches() -> list[Batch]:
        parts = torch.arange(SAMPLES).reshape(3, -1)
        return [Batch(tuple(part[ids] for part in x), labels[ids], ids) for ids in parts]

    return int8, baseline, batches
