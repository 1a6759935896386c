"""What is kept of a run, and how a user names one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Site
from kdq_core.store.store import Store
from kdq_flows.report import kept
from kdq_flows.seeing.runs import runs_of


@pytest.fixture
def two(records: dict[str, Any], view_of: Any, record_of: Any, tmp_path: Path) -> Site:
    """A home with two runs of recipe `x`, `x-1` before `x-2`."""
    site = Site(home=tmp_path / "home")
    for name in ("x-1", "x-2"):
        kept.keep(site, record_of(view_of(**records), name))
        kept.keep_page(site, name, f"page of {name}")
    return site


def test_a_run_is_found_by_its_name_and_the_last_one_by_its_recipe(two: Site, tmp_path: Path) -> None:
    recipe = tmp_path / "file.yaml"
    recipe.write_text("name: x\nworkload: digits\n")
    assert [kept.find(two, asked).result.run for asked in ("x-1", "x", str(recipe))] == ["x-1", "x-2", "x-2"]
    assert (kept.folder(two, "x-1") / kept.PAGE).read_text() == "page of x-1"


def test_runs_that_an_older_kdq_kept_are_listed_and_branches_are_in_their_study(
    two: Site, records: dict[str, Any], view_of: Any, record_of: Any
) -> None:
    record = record_of(view_of(**records), "study-20260102-030405.seed=1")
    kept.keep(two, record)
    study = record.result.model_copy(update={"run": "study-20260102-030405"})
    (two.home / "studies").mkdir()
    (two.home / "studies" / "study-20260102-030405.json").write_text(study.model_dump_json())
    found = {one.run: one for one in runs_of(two)}
    assert found.keys() == {"x-1", "x-2", "study-20260102-030405"}
    assert found["study-20260102-030405"].recipe == "study"
    assert (found["x-1"].seen, found["x-1"].recipe, found["x-1"].metric) == ("completed", "x", {"top1": 0.9})


def test_a_record_has_no_address_that_could_hold_a_password(
    records: dict[str, Any], view_of: Any, record_of: Any, tmp_path: Path
) -> None:
    view = view_of(**records)
    there = view.plan.site.model_copy(update={"tracking_uri": "postgresql://me:secret@host/db"})
    record = record_of(type(view)(view.plan.model_copy(update={"site": there}), view.entries))
    kept.keep(there, record)
    assert "secret" not in (kept.folder(there, "x-1") / kept.RECORD).read_text()


def test_a_run_that_is_not_there_is_an_error_with_the_nearest(two: Site, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        kept.find(two, "x-11")
    assert str(caught.value) == (
        "no run named 'x-11'; did you mean 'x-1'? The last runs: x-2, x-1; name one, or a recipe's file for its last "
        "run"
    )
    with pytest.raises(RecipeError) as caught:
        kept.find(Site(home=tmp_path / "empty"), "y")
    assert str(caught.value) == (
        f"no run named 'y': {str(tmp_path / 'empty')!r} has no run yet; make one with `kdq run FILE`"
    )


def test_a_damaged_record_is_told_where_it_is_named_and_skipped_elsewhere(two: Site) -> None:
    (kept.folder(two, "x-2") / kept.RECORD).write_text("{}")
    with pytest.raises(RecipeError) as caught:
        kept.find(two, "x-2")
    assert str(caught.value) == (
        "the record of run 'x-2' cannot be read: Field required; another version of KDQ wrote it. Run the recipe again"
    )
    assert kept.find(two, "x").result.run == "x-1"


def test_a_version_means_the_last_run_that_made_its_file(two: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdq_registry.pulling.sha256_of_version", lambda _site, _asked: "ab" * 32)
    with pytest.raises(RecipeError) as caught:
        kept.find(two, "x/1")
    assert str(caught.value) == (
        f"no run in {str(two.home)!r} made the file of version 'x/1' (sha256 abababababab); set KDQ_HOME to the home "
        "of the run that registered it"
    )
    record = kept.find(two, "x-1")
    file = {"path": "f", "sha256": "ab" * 32, "bytes": 1, "inputs": ["x float32 [batch, 3]"]}
    result = record.result.model_validate(record.result.model_dump() | {"artifact": file})
    kept.keep(two, record.model_copy(update={"result": result}))
    assert [kept.find(two, asked).result.run for asked in ("x/1", "x@champion")] == ["x-1", "x-1"]


def test_a_run_with_the_same_keys_has_the_same_page(two: Site) -> None:
    keys = [stage.key for stage in kept.find(two, "x-1").result.stages]
    assert kept.same(two, keys) == kept.folder(two, "x-2") / kept.PAGE
    assert kept.same(two, keys[:-1]) is None


def test_entries_that_are_gone_are_left_out(two: Site) -> None:
    assert kept.find(two, "x-1").view(Store(two.store)).entries == {}
