"""`kdq init`: what it writes runs at once, and what is there already stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdq_flows.cli.start import FROM
from kdq_flows.templates import templates

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHAIN = ["train_teacher", "cache_teacher", "distill", "place", "quantize", "export", "evaluate"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDQ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KDQ_THREADS", "1")


def called(*words: str, cwd: str = ".") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kdq", *words], cwd=cwd, capture_output=True, text=True, timeout=500)


def run(start: str) -> dict[str, Any]:
    """Write a start, and run its recipe."""
    assert called("init", "--from", start, start).returncode == 0
    done = called("run", "--no-server", "--json", "recipe.yaml", cwd=start)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_a_start_says_what_it_wrote_and_is_a_valid_recipe() -> None:
    done = called("init", "--from", "quantize", "mine")
    assert done.stdout == (
        "wrote  mine/my_model.py\nwrote  mine/recipe.yaml\nwrote  mine/weights.safetensors\n\n"
        "cd mine && kdq check recipe.yaml        # what would go wrong, in seconds\n"
        "cd mine && kdq run recipe.yaml          # under a minute on two cores\n"
        "then put your own data and model into mine/my_model.py: the two functions marked REPLACE\n"
    ), done.stderr
    valid = called("validate", "recipe.yaml", cwd="mine")
    assert valid.returncode == 0, valid.stderr


@pytest.mark.rare
def test_a_start_is_checked_and_run_at_once() -> None:
    assert called("init", "--from", "quantize", "mine").returncode == 0
    checked = called("check", "recipe.yaml", "--json", cwd="mine")
    rows = json.loads(checked.stdout)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert all(row.keys() == {"check", "ok", "says"} for row in rows)
    assert [row["check"] for row in rows] == [
        "recipe", "home", "device", "plan", "data", "models", "forward", "loss", "trace", "quantizers", "stages",
        "export",
    ]  # fmt: skip
    ran = called("run", "--no-server", "--json", "recipe.yaml", cwd="mine")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["models"]["int8"]["top1"] > 0.9

    again = called("init", "--from", "quantize", "mine")
    assert (again.returncode, again.stderr) == (
        2,
        "error: 'mine/my_model.py' is there already, and KDQ overwrites no file of yours; name another folder\n",
    )
    module = Path("mine/my_model.py")
    module.write_text(module.read_text().replace("CLASSES, WEIGHTS = 16, 4", "CLASSES, WEIGHTS = 16, 3"))
    broken = called("check", "recipe.yaml", cwd="mine")
    assert broken.returncode == 2
    assert broken.stdout.splitlines()[-1].startswith(
        "models      error   the weights in 'weights.safetensors' do not fit the module of the workload's student(): "
    )


@pytest.mark.rare
@pytest.mark.parametrize("start", ["vision", "text", "audio", "tabular"])
def test_a_start_with_a_teacher_runs_the_whole_chain_and_learns(start: str) -> None:
    facts = run(start)
    assert [stage["name"] for stage in facts["stages"]] == CHAIN
    assert facts["models"]["int8"]["top1"] > 0.85
    assert all(gate["met"] for gate in facts["gates"]), facts["gates"]


def test_every_start_marks_two_functions_for_the_user() -> None:
    for start in FROM:
        files = {path.name: path.read_text() for path in templates("start", start)}
        assert files.keys() == {"my_model.py", "recipe.yaml"}
        assert files["my_model.py"].count('"""REPLACE: ') == 2, start


def test_a_wrong_request_writes_nothing() -> None:
    wrong = called("init", "--from", "visoin")
    assert (wrong.returncode, wrong.stderr) == (
        2, "error: no start named 'visoin'; did you mean 'vision'? There are: vision, text, audio, tabular, quantize.\n"
    )  # fmt: skip
    Path("a-file").write_text("")
    assert called("init", "a-file").stderr == "error: 'a-file' is a file; name a folder\n"
    Path("weights.safetensors").write_text("mine")
    assert called("init", "--from", "quantize").stderr == (
        "error: 'weights.safetensors' is there already, and KDQ overwrites no file of yours; name another folder\n"
    )
    assert sorted(path.name for path in Path().iterdir()) == ["a-file", "weights.safetensors"]
