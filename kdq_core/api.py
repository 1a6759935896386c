"""Every name that a plug-in may import from KDQ. Names that need torch load on first use.

```python
from kdq_core.api import Field, Quantizer, PluginSpec, hookimpl
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdq_core.errors import PluginError, RecipeError, StageError, TransientError
from kdq_core.frozen import Frozen
from kdq_core.grids.place import Place
from kdq_core.intervals import Z95, exact, mcnemar, paired, student_975, wilson
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.choosing import Choosing
from kdq_core.plugins.contract import Model, Needs, Port, Reads, Section
from kdq_core.plugins.forms import Form, PlacingTarget
from kdq_core.plugins.hookspecs import API_VERSION, PluginSpec, ReportSection, hookimpl
from kdq_core.plugins.kinds import (
    Column,
    Distiller,
    Evaluator,
    Plugin,
    Quantizer,
    Session,
    Shapes,
    Subject,
    TakenFor,
    Target,
    Workload,
)
from kdq_core.plugins.stage import Stage, Work
from kdq_core.plugins.user_code import user_module, user_object
from kdq_core.recipe.spec import FitSpec
from kdq_core.recipe.student import USER_CODE
from kdq_core.store.family import Record
from kdq_core.store.records import (
    Artifact,
    Checkpoint,
    ChosenForm,
    Departure,
    EpochRecord,
    EvaluationReport,
    Metric,
    OperatorCoverage,
    TeacherOutputs,
    TensorSpec,
)
from kdq_core.tensors import Batch, Batches, LossTerms, Outputs, Split, View
from kdq_core.timing.times import Estimate, Times
from kdq_core.timing.turns import measure_times

if TYPE_CHECKING:
    from kdq_core.grids.fake import FakeQuantize, Grid
    from kdq_core.grids.rounding import round_to_grid
    from kdq_core.plan.view import FinishedRun
    from kdq_core.quantization.capture import Attention, BatchNorm, Dropout, module_path
    from kdq_core.quantization.constants import is_constant
    from kdq_core.quantization.departures import departures_of_conversion
    from kdq_core.quantization.layers import own_norm
    from kdq_core.quantization.levels import LevelsFakeQuantize
    from kdq_core.quantization.minmax import MinMaxFakeQuantize
    from kdq_core.quantization.ops import dequantize, dynamic_linear, quantize
    from kdq_core.quantization.recurrent import Recurrent, recurrent
    from kdq_core.quantization.tracing import export_program, traced_gru, traced_lstm
    from kdq_core.quantization.untraceable import why_untraceable
    from kdq_core.training.losses import hard_loss, outputs_of

_LAZY = {
    "Attention": "kdq_core.quantization.capture",
    "BatchNorm": "kdq_core.quantization.capture",
    "Dropout": "kdq_core.quantization.capture",
    "module_path": "kdq_core.quantization.capture",
    "is_constant": "kdq_core.quantization.constants",
    "own_norm": "kdq_core.quantization.layers",
    "LevelsFakeQuantize": "kdq_core.quantization.levels",
    "MinMaxFakeQuantize": "kdq_core.quantization.minmax",
    "departures_of_conversion": "kdq_core.quantization.departures",
    "dequantize": "kdq_core.quantization.ops",
    "dynamic_linear": "kdq_core.quantization.ops",
    "quantize": "kdq_core.quantization.ops",
    "FinishedRun": "kdq_core.plan.view",
    "FakeQuantize": "kdq_core.grids.fake",
    "round_to_grid": "kdq_core.grids.rounding",
    "Grid": "kdq_core.grids.fake",
    "Recurrent": "kdq_core.quantization.recurrent",
    "recurrent": "kdq_core.quantization.recurrent",
    "export_program": "kdq_core.quantization.tracing",
    "traced_gru": "kdq_core.quantization.tracing",
    "traced_lstm": "kdq_core.quantization.tracing",
    "why_untraceable": "kdq_core.quantization.untraceable",
    "hard_loss": "kdq_core.training.losses",
    "outputs_of": "kdq_core.training.losses",
}

__all__ = [
    "API_VERSION", "USER_CODE", "Z95", "Artifact", "Asked", "Attention", "Batch", "BatchNorm", "Batches", "Checkpoint",
    "Choosing", "ChosenForm", "Column", "Departure", "Distiller", "Dropout", "EpochRecord", "Estimate",
    "EvaluationReport", "Evaluator", "FakeQuantize", "Field", "FinishedRun", "FitSpec", "Form", "Frozen", "Grid",
    "LevelsFakeQuantize", "LossTerms", "Metric", "MinMaxFakeQuantize", "Model", "Needs", "OperatorCoverage", "Outputs",
    "Place", "PlacingTarget", "Plugin", "PluginError", "PluginSpec", "Port", "Quantizer", "Reads", "RecipeError",
    "Record", "Recurrent", "ReportSection", "Section", "Session", "Shapes", "Split", "Stage", "StageError", "Subject",
    "TakenFor", "Target", "TeacherOutputs", "TensorSpec", "Times", "TransientError", "View", "Work", "Workload",
    "departures_of_conversion", "dequantize", "dynamic_linear", "exact", "export_program", "hard_loss", "hookimpl",
    "is_constant", "mcnemar", "measure_times", "module_path", "outputs_of", "own_norm", "paired", "quantize",
    "recurrent", "round_to_grid", "student_975", "traced_gru", "traced_lstm", "user_module", "user_object",
    "why_untraceable", "wilson",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kdq_core.api' has no attribute {name!r}")
