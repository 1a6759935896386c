import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import ModelVersion
from kdq_registry.addresses import COLUMNS, moved_from
from kdq_registry.environment import client, follow_home
from kdq_registry.fetching import fetch
from kdq_registry.logged import repository
from kdq_registry.tracking import Tracker
from tests.registry.tracked import run_id


def addresses(site: Site) -> list[str]:
    """All addresses of files in the site's database."""
    with closing(sqlite3.connect(site.home / "mlflow" / "mlflow.db")) as connection:
        rows = [row for table, column in COLUMNS for row in connection.execute(f"select {column} from {table}")]
    return [str(row[0]) for row in rows if row[0] is not None]


def model_file(site: Site) -> Path:
    return next((site.home / "mlflow" / "artifacts").rglob("model.onnx"))


def test_a_moved_home_keeps_its_models_and_its_runs(
    site: Site, registered: Callable[..., ModelVersion], tmp_path: Path
) -> None:
    version = registered()
    run = run_id(site, Tracker.begin(site, Recipe(name="digits", workload="digits"), owner="me", plan_tags={}))
    moved = Site(home=tmp_path / "moved to ü")
    site.home.rename(moved.home)
    assert fetch(moved, "digits/1").sha256 == version.file_sha256
    below = (moved.home / "mlflow" / "artifacts").as_uri()
    assert addresses(moved)
    assert not [address for address in addresses(moved) if not address.startswith(f"{below}/")]
    files = repository(moved, client(moved).get_run(run).info.artifact_uri)
    assert "onnxruntime-cpu" in Path(files.download_artifacts("recipe.yaml")).read_text()
    assert not site.home.exists()


def test_a_copied_home_reads_and_writes_its_own_files(
    site: Site, registered: Callable[..., ModelVersion], tmp_path: Path
) -> None:
    version = registered()
    copied = Site(home=tmp_path / "copy")
    shutil.copytree(site.home, copied.home)
    model_file(site).write_bytes(b"changed in the original")
    assert fetch(copied, "digits/1").sha256 == version.file_sha256
    before = sorted(site.home.rglob("*"))
    run = run_id(copied, Tracker.begin(copied, Recipe(name="digits", workload="digits"), owner="me", plan_tags={}))
    assert (copied.home / "mlflow" / "artifacts" / "digits" / run / "artifacts" / "recipe.yaml").is_file()
    assert sorted(site.home.rglob("*")) == before
    assert moved_from(site.home / "mlflow" / "mlflow.db", site.home / "mlflow" / "artifacts") is None


def test_another_path_of_the_same_home_is_no_move(
    site: Site, registered: Callable[..., ModelVersion], tmp_path: Path
) -> None:
    registered()
    before = addresses(site)
    os.symlink(site.home, tmp_path / "link")
    follow_home(Site(home=tmp_path / "link"))
    assert addresses(site) == before


def test_a_database_that_several_homes_share_keeps_its_addresses(
    site: Site, registered: Callable[..., ModelVersion], tmp_path: Path
) -> None:
    registered()
    before = addresses(site)
    other = Site(home=tmp_path / "other", tracking_uri=site.mlflow_uri)
    assert fetch(other, "digits/1").version == 1
    assert addresses(site) == before


def test_a_killed_rewriting_leaves_all_addresses_as_they_were(
    site: Site, registered: Callable[..., ModelVersion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registered()
    moved = Site(home=tmp_path / "moved")
    site.home.rename(moved.home)
    before = addresses(moved)
    monkeypatch.setattr("kdq_registry.addresses.COLUMNS", (*COLUMNS[:2], ("no_such_table", "x")))
    with pytest.raises(Exception, match="no such table"):
        follow_home(moved)
    assert addresses(moved) == before
    monkeypatch.undo()
    assert fetch(moved, "digits/1").sha256 == version.file_sha256
