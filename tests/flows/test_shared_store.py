"""A store for several machines behind the commands: `kdq cache`, `kdq doctor`, `kdq run`."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import StoreError
from kdq_core.plan.plan import make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store import open_store
from kdq_core.store.records import Checkpoint
from kdq_core.store.remote import RemoteStore
from kdq_core.store.store import Entry
from kdq_flows.report.numbers import number
from kdq_flows.running import check_home
from kdq_flows.seeing import cache
from kdq_flows.seeing.installation import check_store
from kdq_flows.seeing.shared_store import cache_bytes
from tests.flows.test_run import KDQ, environment, facts
from tests.flows.test_study import OVER, TINY

DAY = 86400.0
RECORD = Checkpoint(slot="student", weights="w.bin", parameters=1)


@pytest.fixture
def shared(site: Site) -> Site:
    return site.model_copy(update={"store_address": f"memory://{uuid.uuid4().hex}"})


def put(site: Site, letter: str, size: int = 1000) -> Entry:
    store, key = open_store(site), letter * 64
    with store.draft(key) as draft:
        (draft / "w.bin").write_bytes(letter.encode() * size)
        return store.commit(draft, stage="distill", key=key, parts={"parents": {}}, record=RECORD)


def test_entries_of_all_machines_are_listed_and_the_read_cache_is_a_line_of_its_own(shared: Site, site: Site) -> None:
    put(shared, "a", size=5000)
    put(shared.model_copy(update={"home": site.home / "other"}), "b")
    assert [(row["key"][0], row["stage"], row["run"]) for row in cache.listed(shared)] == [
        ("b", "distill", None), ("a", "distill", None),
    ]  # fmt: skip
    rows = cache.usage(shared)
    assert [(row["stage"], row["entries"]) for row in rows] == [
        ("distill", 2), ("(unfinished stages)", None), ("(read cache)", None), ("(all)", 2),
    ]  # fmt: skip
    assert 5000 < rows[2]["bytes"] < rows[0]["bytes"]


def test_what_any_home_used_in_the_last_day_stays_and_the_user_is_told_that_others_share_it(shared: Site) -> None:
    put(shared, "a")
    told = (
        f"the store {shared.store_address!r} is shared: what goes is gone for every machine. KDQ does not know the "
        "runs of other homes; entries that any home used in the last day stay"
    )
    found = cache.collect(shared, most=0)
    assert (found.dropped, found.held) == ((), {"they were used in the last 24 h": 1})
    assert found.notes == (
        f"the store would still have {found.kept:,} bytes, more than the 0 that were asked for",
        told,
    )
    later = time.time() + 40 * DAY
    found = cache.collect(shared, older=30 * DAY, delete=True, now=later)
    assert [one.key[0] for one in found.dropped] == ["a"]
    assert cache.listed(shared) == []
    assert open_store(shared).lookup("a" * 64) is None


def test_what_killed_processes_left_and_old_copies_go(shared: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, store = put(shared, "a"), open_store(shared)
    assert isinstance(store, RemoteStore)
    store.objects.write(f"entries/{'b' * 64}/attempt/{'0' * 64}", b"half")
    store.objects.write(f"claims/{'b' * 64}.json", b"{}")
    assert len(cache.collect(shared, older=30 * DAY).notes) == 1
    monkeypatch.setattr("kdq_core.store.tidying._now", lambda _store: time.time() + 2 * DAY)
    os.utime(entry.folder, (1.0, 1.0))
    notes, size = cache.collect(shared, older=30 * DAY).notes[1:], number(cache_bytes(shared), "bytes")
    assert notes == (
        "2 objects that killed processes left would go: 6 B", f"1 copies in the read cache would go: {size}",
    )  # fmt: skip
    assert cache.collect(shared, older=30 * DAY, delete=True).notes[1:] == tuple(
        note.replace("would go", "dropped") for note in notes
    )
    assert not entry.folder.exists()
    assert set(store.objects.listed("entries")) == {
        name for name in store.objects.listed("entries") if name.startswith("a")
    }
    assert open_store(shared).lookup("a" * 64) is not None


def test_the_commands_read_the_address(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = (tmp_path / "drive").as_uri()
    monkeypatch.setenv("KDQ_STORE", address)
    put(Site(home=tmp_path / "home", store_address=address), "a")
    assert [row["key"] for row in json.loads(call("cache", "ls", "--json")[1])] == ["a" * 64]
    assert call("cache", "verify")[:2] == (0, "1 of 1 entries are whole\n")
    (file,) = (tmp_path / "drive" / "entries").glob("*/*/*")
    file.write_bytes(b"other")
    assert call("cache", "verify", "--delete")[0] == 1
    assert call("cache", "verify")[:2] == (0, "0 of 0 entries are whole\n")


def test_a_run_and_the_doctor_refuse_a_store_that_cannot_be_used(shared: Site, s3: str) -> None:
    assert check_store(shared).startswith(
        f"{shared.store_address}, read cache in {str(shared.store)!r}; it answered in "
    )
    wrong = shared.model_copy(update={"store_address": "s3://nobody-made-it"})
    for check in (check_store, check_home):
        with pytest.raises(StoreError, match="the bucket of the store 's3://nobody-made-it' does not exist; make it"):
            check(wrong)


def test_the_address_is_in_no_key_and_versions_of_a_home_s_own_registry_stay_with_it(shared: Site) -> None:
    recipe = Recipe.model_validate({"name": "x", "workload": "digits"})

    def parts(site: Site) -> dict[str, Any]:
        return {node.name: node.parts for node in make_plan(recipe, site, Catalog.load()).nodes}

    alone, other = shared.model_copy(update={"store_address": None}), {"home": shared.home / "other"}
    mine, theirs = parts(shared), parts(shared.model_copy(update=other))
    assert {name for name in mine if mine[name] != theirs[name]} == {"register"}
    assert {name: mine[name] for name in mine if name != "register"} == {
        name: found for name, found in parts(alone).items() if name != "register"
    }
    assert parts(alone)["register"] == parts(alone.model_copy(update=other))["register"]
    server = {"tracking_uri": "http://mlflow.example:5000"}
    assert parts(shared.model_copy(update=server)) == parts(shared.model_copy(update=server | other))
    assert str(shared.store_address) not in str(mine)


@pytest.mark.slow
@pytest.mark.rare
@pytest.mark.timeout(1200)
def test_two_homes_with_one_store_compute_each_key_of_a_matrix_once(tmp_path: Path, s3: str) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY + OVER)
    runs = []
    for name in ("one", "two"):
        home = tmp_path / name / "home"
        home.mkdir(parents=True)
        runs.append(subprocess.Popen(
            [KDQ, "run", str(tmp_path / "tiny.yaml"), "--no-server", "--json"], cwd=home.parent, text=True,
            env=environment(home) | {"KDQ_STORE": s3}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
    results, computed = [], Counter[str]()
    for one in runs:
        out, err = one.communicate(timeout=1100)
        assert one.returncode == 0, err
        results.append(facts(subprocess.CompletedProcess(one.args, 0, out, err)))
        computed.update(stage["key"] for stage in results[-1]["stages"] if stage["state"] == "ran")
    assert set(computed.values()) == {1}
    both = [{stage["name"]: stage["key"] for stage in result["stages"]} for result in results]
    same = [name for name in both[0] if not name.startswith("register")]
    assert [both[0][name] for name in same] == [both[1][name] for name in same]
    assert {both[0][name] for name in same} <= set(computed)
    files = [[branch["artifact"]["sha256"] for branch in result["branches"]] for result in results]
    assert files[0] == files[1]
    assert len(files[0]) == 4
    stages = Counter(one["state"] for result in results for one in result["stages"] if one["name"] in same)
    assert stages["ran"] == len(same)
    store = open_store(Site(home=tmp_path / "three", store_address=s3))
    assert isinstance(store, RemoteStore)
    assert store.objects.listed("claims") == {}


@pytest.mark.slow
@pytest.mark.rare
@pytest.mark.timeout(900)
def test_a_run_whose_store_is_away_for_a_while_tries_again_and_completes(
    tmp_path: Path, s3: str, s3_server: Any
) -> None:
    recipe = TINY + "retry: {attempts: 6, backoff_seconds: 1}\n"
    (tmp_path / "tiny.yaml").write_text(recipe)
    home = tmp_path / "home"
    store = open_store(Site(home=tmp_path / "other", store_address=s3))
    run = subprocess.Popen(
        [KDQ, "run", str(tmp_path / "tiny.yaml"), "--no-server", "--json"], cwd=tmp_path, text=True,
        env=environment(home) | {"KDQ_STORE": s3}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    end = time.monotonic() + 600
    while not list(store.manifests("train_teacher")):
        assert run.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    s3_server.stop()
    try:
        time.sleep(6)
    finally:
        s3_server.start()
    out, err = run.communicate(timeout=600)
    assert run.returncode == 0, err
    assert facts(subprocess.CompletedProcess(run.args, 0, out, err))["status"] == "completed"
    said = " ".join(err.split())
    assert f"failed: the store {s3!r} does not answer" in said
    assert "much-too-secret" not in said
    assert isinstance(store, RemoteStore)
    assert store.objects.listed("claims") == {}
