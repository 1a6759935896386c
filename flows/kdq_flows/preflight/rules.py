"""Refuses rules of a recipe that match nothing, before a plan is shown."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

from kdq_core.errors import RecipeError
from kdq_core.plan.plan import asked_of
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.wiring import wire
from kdq_core.recipe.spec import Recipe, Site


def check_rules(recipe: Recipe, site: Site, catalog: Catalog) -> None:
    """Place the quantizers of a recipe that has rules, in its untrained student.

    Takes some seconds, and reads two samples. If the student cannot be made or captured, `kdq check` says why.

    Raises:
        RecipeError: a rule matches nothing or changes nothing, or the rules skip every layer.
    """
    if not recipe.quantize.rules:
        return
    from kdq_core.training.backend import plain_torch
    from kdq_flows.preflight.models import Rehearsal

    plain_torch(site.threads)
    asked = asked_of(recipe, site, catalog)
    with tempfile.TemporaryDirectory(prefix="kdq-plan-") as folder, contextlib.redirect_stdout(sys.stderr):
        try:
            rehearsal = Rehearsal(asked, wire(asked, catalog), Path(folder))
            if rehearsal.quantizes:
                rehearsal.quantizers()
        except RecipeError:
            raise
        except Exception:  # the data, the model or a plug-in fails: a plan does not need them
            return
