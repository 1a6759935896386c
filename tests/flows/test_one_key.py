"""Two runs that come to the same key at the same time: one computes it, and the other finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import CATALOG, bringing
from kdq_core.api import Checkpoint, Reads, Stage
from kdq_core.plugins.stage import Needs
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.observer import Silent
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.run.shared import Shared

class Slow(Stage):
    gives = "student"
    record = Checkpoint
    needs = Needs(device="none")
    def reads(self, asked, wired):
        return Reads(seeded=False, data=False)
    def run(self, work):
        print("computes", flush=True)
        time.sleep(1.5)
        (work.draft / "w").write_bytes(b"1")
        return Checkpoint(slot="student", weights="w", parameters=1)

class Said(Silent):
    def message(self, text):
        print(text, flush=True)

recipe = Recipe.model_validate({"name": "slow", "workload": "digits", "stages": ["slow"], "gates": []})
shared = Shared(catalog=bringing(CATALOG, slow=Slow))
run = Pipeline(recipe, Site(home=Path(sys.argv[1])), Said(), sys.argv[3], tracked=False, shared=shared)
print("ready", flush=True)
sys.stdin.readline()
run.run_stage("slow", {})
print(run.stages["slow"].state)
run.finish()
"""


def start(home: Path, name: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SCRIPT, str(home), str(Path(__file__).parents[1] / "core"), name]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def heard(one: subprocess.Popen[str]) -> str:
    assert one.stdout is not None
    return one.stdout.readline().strip()


def told(one: subprocess.Popen[str]) -> None:
    assert one.stdin is not None
    one.stdin.write("go\n")
    one.stdin.flush()


def test_the_second_of_two_runs_waits_for_the_first_and_finds_its_entry(tmp_path: Path) -> None:
    both = [start(tmp_path / "home", name) for name in ("first", "second")]
    assert [heard(one) for one in both] == ["ready", "ready"]
    for one in both:
        told(one)
    said = sorted(one.communicate(timeout=60)[0].splitlines() for one in both)
    assert said == [["computes", "ran"], ["slow waits: another run computes it", "shared"]]
    assert [one.returncode for one in both] == [0, 0]
    assert list((tmp_path / "home" / "store" / "claims").iterdir()) == []
    assert list((tmp_path / "home" / "scratch").iterdir()) == []


def test_the_second_run_takes_over_when_the_first_is_killed(tmp_path: Path) -> None:
    first, second = (start(tmp_path / "home", name) for name in ("first", "second"))
    assert [heard(first), heard(second)] == ["ready", "ready"]
    told(first)
    assert heard(first) == "computes"
    told(second)
    assert heard(second) == "slow waits: another run computes it"
    first.kill()
    assert second.communicate(timeout=60)[0].splitlines() == ["computes", "ran"]
    first.communicate()
