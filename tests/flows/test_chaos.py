"""`benchmarks/chaos.py`: its hook, its points, and what it finds wrong; and four of its points, killed for real."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
HOOK = BENCHMARKS / "chaos_hook"
CALLS = {
    "inline": {"child Store.commit": 5, "parent MlflowClient.log_batch": 40, "parent Store.lookup": 9},
    "serve": {"child Store.commit": 5, "serve MlflowClient.search_runs": 1},
}


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_hook_stops_a_process_behind_the_call_that_the_point_names_and_no_other(tmp_path: Path) -> None:
    point = {"role": "parent", "call": "Store.lookup", "number": 2}
    (tmp_path / "point").write_text(json.dumps(point))
    code = (
        "from pathlib import Path\nfrom kdq_core.store.store import Store\nstore = Store(Path('store'))\n"
        "with store.draft('0' * 64): pass\nstore.lookup('0' * 64)\nstore.lookup('0' * 64)\nPath('after').touch()"
    )
    path = os.pathsep.join(filter(None, (str(HOOK), os.environ.get("PYTHONPATH"))))
    variables = os.environ | {"PYTHONPATH": path, "CHAOS_FOLDER": str(tmp_path)}
    child = subprocess.Popen([sys.executable, "-c", code], env=variables, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / "hit").read_text() == str(child.pid)
        assert not (tmp_path / "after").exists()
    finally:
        child.kill()
        child.wait()
    calls = [line.split()[:2] for line in (tmp_path / "calls").read_text().splitlines()]
    outside = [call for role, call in calls if call in ("Store.draft", "Store.draft.end", "Store.lookup")]
    assert outside == ["Store.draft", "Store.draft.end", "Store.lookup", "Store.lookup"]
    assert {role for role, _ in calls} == {"parent"}


def test_points_lie_behind_each_call_first_and_name_every_victim() -> None:
    from chaos_points import VICTIMS, counted, points_of

    points = points_of(CALLS, 60)
    assert points == points_of(CALLS, 60)
    assert len(points) == len({one.name for one in points}) == 60
    behind = [one for one in points[:8] if one.call and one.victim == one.call.split()[0]]
    assert {one.call for one in behind} == {call for calls in CALLS.values() for call in calls}
    assert all(1 <= one.number <= CALLS[one.mode][one.call] for one in points if one.call)
    killed = {(one.mode, one.victim) for one in points}
    assert killed >= {(mode, victim) for mode in CALLS for victim in VICTIMS[mode]} | {("outage", "all")}
    assert counted("child Store.get 4\nchild Store.get 5\nparent Store.get 1\nhalf a li") == {
        "child Store.get": 2, "parent Store.get": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "parent", "kind"),
    [
        ("python bin/kdq run x.yaml --json", "bash", "parent"),
        ("python -P -m kdq_core.worker.warm 5 entry", "python bin/kdq run x.yaml", "warm"),
        ("python -P -m kdq_core.worker.warm 5 entry", "python -P -m kdq_core.worker.warm 5 entry", "child"),
        ("python -P -m kdq_core.worker.main", "python bin/kdq run x.yaml", "child"),
        ("python -P -m kdq_flows.servers.guard 4200", "init", "prefect"),
        ("python -m prefect worker start --pool kdq", "python bin/kdq serve", "worker"),
        ("python bin/kdq serve", "bash", "serve"),
        ("python -m prefect.flow_engine", "python -m prefect worker start --pool kdq", "parent"),
    ],
)
def test_processes_are_known_by_their_command_lines(line: str, parent: str, kind: str) -> None:
    from chaos_house import kind_of

    assert kind_of(line.split(), parent.split()) == kind


def test_what_differs_from_an_undisturbed_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chaos_house import House

    house = House(tmp_path)
    good = {"status": "READY", "version": "1", "kdq.sha256": "a"}
    found: dict[str, Any] = {"versions": [good], "tracked": [("distill", "FINISHED", {"train/loss": [1, 2, 3]})]}
    monkeypatch.setattr(House, "versions", lambda *_: found["versions"])
    monkeypatch.setattr(House, "tracked", lambda *_: iter(found["tracked"]))

    def entry(key: str, text: str) -> None:
        folder = house.home / "store" / key[:2] / key
        folder.mkdir(parents=True)
        (folder / "weights").write_text(text)
        (folder / "manifest.json").write_text(json.dumps({"stage": "distill", "files": [{"path": "weights"}]}))

    entry("aa11", "one")
    reference = {"stored": house.stored(), "version": good}
    assert house.wrong("x", reference) == []

    entry("bb22", "two")
    (house.home / "store" / "aa" / "aa11" / "weights").write_text("other")
    (house.home / "locks").mkdir()
    (house.home / "locks" / "aa11.lock").touch()
    found["versions"] = [good, {**good, "kdq.sha256": "b"}]
    found["tracked"] = [("distill", "RUNNING", {"train/loss": [1, 1]})]
    assert sorted(house.wrong("x", reference)) == [
        "2 versions are registered",
        "curve 'train/loss' of run 'distill' has the steps [1, 1]",
        "entry aa11 of distill has other files",
        "entry bb22 of distill is not in both stores",
        "locks/aa11.lock is left",
        "run 'distill' is RUNNING in MLflow",
        "the store has more entries than after one run: {'distill': 1}",
        "version 1 differs: {'status': 'READY', 'kdq.sha256': 'b'}",
    ]


def test_the_page_counts_kills_and_names_what_was_wrong_and_what_is_open() -> None:
    from chaos import page
    from chaos_points import points_of

    kept: dict[str, Any] = {"calls": CALLS, "points": [one.facts for one in points_of(CALLS, 8)]}
    for one, wrong in zip(kept["points"], ([], ["2 versions are registered"]), strict=False):
        one["result"] = {"killed": [one["victim"]], "codes": [0], "seconds": 1.0, "wrong": wrong}
    text = page(kept)
    assert "2 kills of 8 planned" in text
    assert ": 2 versions are registered\n" in text
    assert "A kill lies behind 1 of the 4 pairs" in text
    assert "serve MlflowClient.search_runs" in text


def test_a_point_whose_moment_never_comes_is_made_again_earlier() -> None:
    from chaos import in_time
    from chaos_points import Point

    tried: list[float] = []

    def make(point: Point) -> dict[str, Any]:
        tried.append(point.share)
        return {"killed": ["all"] if point.share < 0.3 else []}

    late = Point(name="x", mode="inline", victim="all", share=0.8)
    assert in_time(late, make) == {"share": 0.2, "result": {"killed": ["all"]}}
    assert tried == [0.8, 0.4, 0.2]
    behind = Point(name="x", mode="inline", victim="all", call="parent Store.get", number=1)
    assert in_time(behind, lambda _: {"killed": []}) == {"share": 0.0, "result": {"killed": []}}


@pytest.mark.parametrize(
    ("states", "right"),
    [
        (["SkippedLate", "SkippedLate", "Completed", "Scheduled"], True),
        (["SkippedLate", "SkippedLate", "SkippedLate", "Completed"], True),  # its process was slow to start
        (["SkippedLate", "Completed", "Completed", "Scheduled"], False),
        (["SkippedLate", "SkippedLate", "SkippedLate", "Scheduled"], False),
    ],
)
def test_one_run_makes_up_for_those_that_an_outage_missed(states: list[str], right: bool) -> None:
    from chaos import INTERVAL, caught_up

    there = datetime(2026, 12, 1, tzinfo=UTC)
    ticks = [there + timedelta(seconds=INTERVAL * (number - 2.5)) for number in range(4)]
    assert (caught_up(list(zip(ticks, states, strict=True)), there) == []) is right


@pytest.mark.slow
@pytest.mark.rare
@pytest.mark.timeout(1200)
def test_four_kills_of_inline_runs_leave_nothing_wrong(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "chaos.py"), "--points", "9", "--modes", "inline", "--minutes", "10"]
    kept = {name: value for name, value in os.environ.items() if name != "HOME"} | {"HOME": str(tmp_path)}
    done = subprocess.run([*words, "--output", tmp_path / "chaos"], env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    points = json.loads((tmp_path / "chaos.json").read_text())["points"]
    results = [one["result"] for one in points if "result" in one]
    assert sum(bool(one["killed"]) for one in results) >= 4, done.stdout
    assert [one["wrong"] for one in results if one["wrong"]] == [], done.stdout
