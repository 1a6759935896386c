"""Two runs that come to the same key at the same time: one computes it, and the other finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import CATALOG, Run, bringing
from kdq_core.api import Checkpoint, Reads, Stage

class Slow(Stage):
    gives = "student"
    record = Checkpoint
    def reads(self, asked, wired):
        return Reads(seeded=False, data=False)
    def run(self, work):
        work.progress(1, 1, "computed")
        time.sleep(1.5)
        (work.draft / "w").write_bytes(b"1")
        return Checkpoint(slot="student", weights="w", parameters=1)

run = Run(Path(sys.argv[1]), bringing(CATALOG, slow=Slow), workload="digits", stages=["slow"])
run.checked = True
print("ready", flush=True)
sys.stdin.readline()
entry = run.stage("slow")
print(entry.folder, [event.get("note", event["event"]) for event in run.events])
"""


def test_the_second_of_two_runs_waits_for_the_first_and_finds_its_entry(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "home"), str(Path(__file__).parent.parent)]
    both = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in both:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    said = sorted(one.communicate(timeout=60)[0] for one in both)
    folder = next((tmp_path / "home" / "store").glob("??/*"))
    assert said == [f"{folder} ['computed']\n", f"{folder} ['waits: another run computes it', 'shared']\n"]
    assert [one.returncode for one in both] == [0, 0]
    assert list((tmp_path / "home" / "locks").iterdir()) == []
    assert list((tmp_path / "home" / "scratch").iterdir()) == []
