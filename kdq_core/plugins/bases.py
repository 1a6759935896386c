"""The base class of each kind of plug-in."""

from __future__ import annotations

from kdq_core.plugins.kinds import Distiller, Evaluator, Kind, Plugin, Quantizer, Target, Workload
from kdq_core.plugins.stage import Stage

BASES: dict[Kind, type[Plugin]] = {
    "workload": Workload,
    "distiller": Distiller,
    "quantizer": Quantizer,
    "target": Target,
    "evaluator": Evaluator,
    "stage": Stage,
}
KINDS: tuple[Kind, ...] = tuple(BASES)
