"""A run that ends uploads what an earlier, killed run left, if MLflow did not take it when the run began."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.owner import host
from kdq_flows.running import _upload_left
from kdq_registry.environment import client
from kdq_registry.spool import spools
from kdq_registry.tracking import Tracker

pytestmark = pytest.mark.slow
DEAD = f"{host()}:1:0:another-boot"


def diary(said: list[str]) -> Any:
    return SimpleNamespace(run="digits-2", message=said.append)


def test_events_of_a_killed_run_are_uploaded_when_the_next_one_ends(tmp_path: Path) -> None:
    site, said = Site(home=tmp_path), list[str]()
    recipe = Recipe.model_validate({"name": "digits", "workload": "digits"})
    Tracker.begin(site, recipe, owner=DEAD, plan_tags={}, name="digits-1")
    own = Tracker.begin(site, recipe, owner=DEAD, plan_tags={}, name="digits-2.weights=8")
    _upload_left(site, diary(said))
    assert said == []  # MLflow did not take this run's own events, so it would not take others
    assert len(spools(site)) == 2
    own.spool.remove()
    _upload_left(site, diary(said))
    assert said == ["3 events of run 'digits-1' that had waited are in MLflow now"]
    (run,) = client(site).search_runs(["1"])
    assert (run.info.run_name, run.info.status) == ("digits-1", "KILLED")
    assert spools(site) == []
