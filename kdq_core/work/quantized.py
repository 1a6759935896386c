"""The places of quantizers in a student, and the student with a fake-quantizer in each place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import load_file
from torch import nn
from torch.fx import GraphModule

from kdq_core.quantization.capture import capture
from kdq_core.quantization.placing import Placement, placed
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.store.records import Checkpoint
from kdq_core.work.answering import answer
from kdq_core.work.data import check_shapes, two_samples
from kdq_core.work.models import loaded

if TYPE_CHECKING:
    from kdq_core.work.shown import Shown


def placement(work: Shown, graph: GraphModule) -> Placement:
    """Choose where quantizers go in the captured student, by the recipe's rules.

    Raises:
        RecipeError: a rule matches nothing, or the rules skip every operator.
        StageError: the quantizer has nothing to quantize.
    """
    return placed(graph, work.target, work.quantizer, work.section("quantize"))


def check_student(work: Shown, student: nn.Module) -> GraphModule:
    """Capture a student and place its quantizers, so that KDQ refuses it before it spends hours on fits.

    Returns:
        The graph.

    Raises:
        RecipeError: a rule matches nothing, or the rules skip every operator.
        StageError: the student fails on two samples, cannot be captured, or has nothing to quantize; or samples have
            different shapes.
    """
    check_shapes(work.workload)
    batch = two_samples(work.workload)
    answer("student", student, batch)
    graph = capture(student, batch.inputs)
    placement(work, graph)
    return graph


def prepared(work: Shown, graph: GraphModule) -> GraphModule:
    """Put a fake-quantizer in each place of the captured student."""
    spec, places = work.section("quantize"), placement(work, graph).places
    low = any(place.bits < 8 for place in places) if spec.round_bias == "auto" else spec.round_bias == "on"
    return prepare(graph, places, work.quantizer, round_bias=low)


def prepared_student(work: Shown) -> GraphModule:
    """Rebuild the quantized student from the inputs `student` and `quantized`; it rounds, and observes nothing."""
    model = prepared(work, capture(loaded(work, "student"), two_samples(work.workload).inputs))
    entry = work.input("quantized")
    model.load_state_dict(load_file(entry.file(work.record("quantized", Checkpoint).weights)))
    model.eval()
    set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
    return model
