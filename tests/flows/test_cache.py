"""The store from outside: `kdq cache ls`, `du`, `gc`, `verify`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Site
from kdq_core.store.records import Checkpoint, ModelVersion
from kdq_core.store.store import Entry, Store
from kdq_flows.facts.state import RunState, StageState, file_of
from kdq_flows.owner import owner_tag
from kdq_flows.seeing import cache

DAY = 86400.0


def put(site: Site, letter: str, *, size: int = 1000, days: float = 0.0, made_from: dict[str, Entry] | None = None,
        record: Any = None, stage: str = "distill") -> Entry:  # fmt: skip
    """An entry that was used for the last time `days` ago."""
    store, key = Store(site.store), letter * 64
    record = record or Checkpoint(slot="student", weights="w.bin", parameters=1)
    parents = {port: entry.digest for port, entry in (made_from or {}).items()}
    with store.draft(key) as draft:
        (draft / "w.bin").write_bytes(letter.encode() * size)
        entry = store.commit(draft, stage=stage, key=key, parts={"parents": parents}, record=record)
    when = time.time() - days * DAY
    os.utime(entry.folder, (when, when))
    return entry


def letters(found: cache.Collected) -> str:
    return "".join(one.key[0] for one in found.dropped)


def plant(site: Site, run: str, *keys: str, **fields: Any) -> None:
    stages = tuple(StageState(name="s", state="ran", seconds=1.0, key=key) for key in keys)
    told = {"recipe": "r", "owner": owner_tag(), "kdq": "0", "device": "cpu", "began": 1000.0, "stages": stages}
    file_of(site, run).parent.mkdir(parents=True)
    file_of(site, run).write_text(RunState(run=run, **(told | fields)).model_dump_json())


def test_a_look_up_is_a_use_and_a_check_is_none(site: Site) -> None:
    put(site, "a", days=3)
    (row,) = cache.listed(site)
    assert (row["stage"], row["run"], row["unused"] // DAY) == ("distill", None, 3)
    assert Store(site.store).damage("a" * 64) is None
    assert cache.listed(site)[0]["unused"] // DAY == 3
    Store(site.store).get("a" * 64)
    assert cache.listed(site)[0]["unused"] < 5


def test_entries_are_listed_with_the_newest_run_that_used_them(site: Site) -> None:
    put(site, "a", days=2)
    put(site, "b", days=1)
    plant(site, "r-1", "a" * 64, "b" * 64, status="completed", began=1.0)
    plant(site, "r-2", "b" * 64, status="completed", began=2.0)
    assert [(row["key"][0], row["recipe"], row["run"]) for row in cache.listed(site)] == [
        ("b", "r", "r-2"), ("a", "r", "r-1"),
    ]  # fmt: skip


def test_room_is_told_by_stage_with_what_unfinished_stages_keep(site: Site) -> None:
    put(site, "a", size=5000, stage="export")
    put(site, "b", size=10)
    (site.home / "scratch" / "key").mkdir(parents=True)
    (site.home / "scratch" / "key" / "state").write_bytes(b"12345")
    rows = cache.usage(site)
    assert [(row["stage"], row["entries"]) for row in rows] == [
        ("export", 1), ("distill", 1), ("(unfinished stages)", None), ("(all)", 2),
    ]  # fmt: skip
    assert rows[2]["bytes"] == 5
    assert rows[0]["bytes"] > 5000
    assert rows[3]["bytes"] == sum(row["bytes"] for row in rows[:3])


def test_old_entries_go_least_recently_used_first_and_only_on_request(site: Site) -> None:
    for letter, days in (("a", 40), ("b", 50), ("c", 10)):
        put(site, letter, days=days)
    assert letters(cache.collect(site, older=30 * DAY)) == "ba"
    assert len(cache.listed(site)) == 3
    assert letters(cache.collect(site, older=30 * DAY, delete=True)) == "ba"
    assert [row["key"][0] for row in cache.listed(site)] == ["c"]
    assert Store(site.store).lookup("a" * 64) is None
    assert list((site.store / "drafts").iterdir()) == []


def test_a_size_takes_as_many_as_it_needs_and_no_entry_newer_than_was_asked(site: Site) -> None:
    for letter, days in (("a", 40), ("b", 30), ("c", 20), ("d", 1)):
        put(site, letter, days=days, size=100_000)
    assert letters(cache.collect(site, most=250_000)) == "ab"
    assert letters(cache.collect(site, most=250_000, older=35 * DAY)) == "a"
    found = cache.collect(site, most=0, older=10 * DAY)
    assert letters(found) == "abc"
    (note,) = found.notes
    assert note == f"the store would still have {found.kept:,} bytes, more than the 0 that were asked for"


def test_what_a_registered_version_was_made_from_stays_and_goes_once_it_is_gone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, other = put(site, "a", days=90), put(site, "b", days=80)
    student = put(site, "c", days=70, made_from={"teacher": teacher})
    version = ModelVersion(
        name="r", version=1, uri="models:/r/1", tracking_uri="x", run_id="1", file_sha256="0" * 64
    )  # fmt: skip
    put(site, "d", days=60, made_from={"artifact": student}, record=version, stage="register")
    monkeypatch.setattr("kdq_registry.registering.version_exists", lambda _record, _site: True)
    found = cache.collect(site, older=30 * DAY)
    assert letters(found) == "b"
    assert found.held == {"a registered version was made from them": 3}
    assert other.folder.exists()
    monkeypatch.setattr("kdq_registry.registering.version_exists", lambda _record, _site: False)
    assert letters(cache.collect(site, older=30 * DAY)) == "abcd"

    def silent(_record: ModelVersion, _site: Site) -> bool:
        raise RecipeError("the server is away")

    monkeypatch.setattr("kdq_registry.registering.version_exists", silent)
    found = cache.collect(site, older=30 * DAY)
    assert letters(found) == "b"
    assert found.notes == (
        "the registry could not be asked (the server is away); KDQ keeps what its versions were made from",
    )


def test_what_was_used_since_a_running_run_began_stays(site: Site) -> None:
    put(site, "a", days=3)
    put(site, "b", days=1)
    plant(site, "r-1", began=time.time() - 2 * DAY)
    found = cache.collect(site, most=0)
    assert letters(found) == "a"
    assert found.held == {"a running run uses them": 1}


def test_what_was_used_just_now_stays_because_not_every_command_leaves_a_record(site: Site) -> None:
    put(site, "a")
    assert cache.collect(site, most=0).held == {"they were used in the last 10 min": 1}


def test_an_entry_that_is_taken_at_the_last_moment_stays(site: Site) -> None:
    entry, store = put(site, "a", days=3), Store(site.store)
    since = entry.folder.stat().st_mtime
    store.get("a" * 64)
    assert not store.discard_unused("a" * 64, since)
    assert store.get("a" * 64) == entry


def test_neither_an_age_nor_a_size_is_refused(site: Site) -> None:
    with pytest.raises(RecipeError) as caught:
        cache.collect(site)
    assert str(caught.value) == "say what may go: --older 30d (unused for so long), --max-size 20GB, or both"


def test_ages_and_sizes_are_read_as_people_write_them() -> None:
    assert [cache.seconds_of(text) for text in ("30d", "1.5h", "2w")] == [30 * DAY, 5400, 14 * DAY]
    assert [cache.bytes_of(text) for text in ("20GB", "1.5 tb", "2KiB", "7B")] == [2e10, 1.5e12, 2048, 7]
    with pytest.raises(RecipeError) as caught:
        cache.seconds_of("a month")
    assert str(caught.value) == "--older is 'a month'; write a number with s, m, h, d or w, such as 30d"
    with pytest.raises(RecipeError) as caught:
        cache.bytes_of("much")
    assert str(caught.value) == "--max-size is 'much'; write a number with B, kB, MB, GB or TB, such as 20GB"
    with pytest.raises(RecipeError, match="--max-size is '20'; write a number with"):
        cache.bytes_of("20")  # bytes, and all of the store would go


def test_the_commands_list_collect_and_verify(call: Any, tmp_path: Path) -> None:
    site = Site(home=tmp_path / "home")
    assert call("cache", "ls")[1] == "the store is empty\n"
    entry = put(site, "a", days=40)
    assert json.loads(call("cache", "ls", "--json")[1])[0]["key"] == "a" * 64
    assert "distill" in call("cache", "ls")[1]
    assert "(all)" in call("cache", "du")[1]
    assert call("cache", "verify")[:2] == (0, "1 of 1 entries are whole\n")
    entry.file("w.bin").write_bytes(b"other")
    code, out, _ = call("cache", "verify")
    assert (code, out.splitlines()[-1]) == (
        1, "0 of 1 entries are whole; --delete drops them, and the next run computes them anew",
    )  # fmt: skip
    assert f"distill {'a' * 12}: the file 'w.bin' of the store entry" in out
    told = json.loads(call("cache", "gc", "--older", "30d", "--json")[1])
    assert (told["deleted"], [one["stage"] for one in told["entries"]]) == (False, ["distill"])
    assert call("cache", "gc", "--older", "30d", "--delete")[1].splitlines()[-1].startswith("freed ")
    assert call("cache", "verify")[:2] == (0, "0 of 0 entries are whole\n")
