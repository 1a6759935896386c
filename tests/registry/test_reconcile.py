import subprocess
import sys
from pathlib import Path

import pytest

from kdq_core.errors import StageError
from kdq_core.recipe.spec import Recipe, Site
from kdq_registry.environment import client
from kdq_registry.reconcile import reconcile
from kdq_registry.tracking import Tracker
from tests.registry.tracked import run_id


def test_runs_of_a_dead_owner_are_killed_and_others_left(site: Site, recipe: Recipe) -> None:
    dead = Tracker.begin(site, recipe, owner="dead", plan_tags={}, name="dead")
    nested = dead.stage_run("distill", "a" * 64, {})
    finished = dead.stage_run("train_teacher", "b" * 64, {})
    dead.finish(finished, "FINISHED")
    alive = Tracker.begin(site, recipe, owner="alive", plan_tags={}, name="alive")
    pipeline, nested, finished = (run_id(site, dead, run) for run in ("", nested, finished))
    living = run_id(site, alive)
    foreign = client(site).create_run("0").info.run_id

    closed = reconcile(site, lambda owner: owner == "alive")

    assert sorted(closed) == sorted([pipeline, nested])
    states = {
        run_id: client(site).get_run(run_id).info.status for run_id in (pipeline, nested, finished, living, foreign)
    }
    assert states == {
        pipeline: "KILLED",
        nested: "KILLED",
        finished: "FINISHED",
        living: "RUNNING",
        foreign: "RUNNING",
    }
    assert reconcile(site, lambda owner: owner == "alive") == []


def test_a_home_without_a_database_stays_without_one(tmp_path: Path) -> None:
    assert reconcile(Site(home=tmp_path), lambda owner: False) == []
    assert list(tmp_path.iterdir()) == []


def test_a_look_that_finds_nothing_imports_no_mlflow(site: Site, recipe: Recipe) -> None:
    run_id(site, Tracker.begin(site, recipe, owner="alive", plan_tags={}))
    code = (
        "import sys\nfrom pathlib import Path\nfrom kdq_core.recipe.spec import Site\n"
        "from kdq_registry.reconcile import reconcile\n"
        "assert reconcile(Site(home=Path(sys.argv[1])), lambda owner: True) == []\n"
        "print('mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(site.home)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_damaged_database_is_told(site: Site) -> None:
    database = site.home / "mlflow" / "mlflow.db"
    database.write_bytes(b"x" * 4096)
    with pytest.raises(StageError, match="cannot be read"):
        reconcile(site, lambda owner: False)
