"""Where quantizers go in the recipe's student; asked before anything is trained, and again when it is quantized."""

from __future__ import annotations

from torch.fx import GraphModule

from kdq_core.quantization.capture import capture
from kdq_core.quantization.placing import Placement, placed
from kdq_core.work.context import StageContext


def placement(context: StageContext, graph: GraphModule) -> Placement:
    """Where quantizers go in the captured student under the recipe's rules.

    Raises:
        RecipeError: a rule matches nothing, or the rules skip all there is.
        StageError: the quantizer has nothing to quantize.
    """
    return placed(graph, context.target, context.quantizer, context.recipe.quantize)


def check_student(context: StageContext) -> GraphModule:
    """Capture the untrained student and place its quantizers, so that what does not fit is told before hours are spent.

    Returns:
        The graph.

    Raises:
        RecipeError: a rule matches nothing, or the rules skip all there is.
        StageError: the student cannot be captured, or has nothing to quantize.
    """
    graph = capture(context.workload.student(), context.example())
    placement(context, graph)
    return graph
