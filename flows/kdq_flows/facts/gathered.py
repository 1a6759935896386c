"""What the report and the files of a run say, as fields of its facts."""

from __future__ import annotations

from typing import Any

from kdq_core.plan.plan import asked_of
from kdq_core.plan.view import RunView
from kdq_core.plugins.catalog import Catalog
from kdq_flows.facts.coverage import coverage_of
from kdq_flows.facts.result import (
    anomalies_of,
    artifact_of,
    choice_of,
    gains_of,
    gates_of,
    models_of,
    notes_of,
    table_of,
    version_of,
    weights_of,
)
from kdq_flows.facts.verdict import verdict_of


def gathered(view: RunView, catalog: Catalog) -> dict[str, Any]:
    """The fields of `RunResult` that come from the entries of a run.

    Args:
        view: the run so far.
        catalog: has the recipe's evaluators, which name the columns of the closing table.
    """
    asked = asked_of(view.plan.recipe, view.plan.site, catalog)
    columns = [column for evaluator in asked.evaluators for column in evaluator.columns]
    gains, gates = gains_of(view), gates_of(view)
    return {
        "models": models_of(view),
        "table": table_of(view, columns) if view.metrics else (),
        "gains": gains,
        "notes": notes_of(view),
        "gates": gates,
        "weights": weights_of(view),
        "artifact": artifact_of(view),
        "coverage": coverage_of(view),
        "version": version_of(view),
        "verdict": verdict_of(view, gains, gates),
        "anomalies": anomalies_of(view),
        "choice": choice_of(view),
    }
