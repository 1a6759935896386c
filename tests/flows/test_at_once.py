"""Two leases run two nodes at once and never three; several devices share the batches of a fit."""

import json
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from kdq_core.errors import StageError
from kdq_core.reading.studies import Study, load
from kdq_core.recipe.spec import Site
from kdq_flows.run.branch import BranchPipeline
from kdq_flows.run.study import StudyRun
from tests.flows.test_run import KDQ, ask_prefect, environment
from tests.flows.test_study import stored
from tests.registry.backends import postgres

TINY = """
name: tiny
workload: {use: digits, options: {teacher_width: 16}}
target: {use: onnxruntime-cpu, options: {placement: smallest}} # chosen by no measurement
teacher: {fit: {epochs: 1}}
distill: {fit: {epochs: 1}}
quantize: {fit: {epochs: 1}}
evaluate: [quality, size]
gates: []
"""


def test_a_study_runs_as_many_nodes_at_once_as_there_are_leases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, now, seen = threading.Lock(), [0], list[int]()

    def tried(self: BranchPipeline, name: str, *_: object) -> None:
        with lock:
            now[0] += 1
            seen.append(now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        raise StageError("no")

    monkeypatch.setattr(BranchPipeline, "try_stage", tried)
    (tmp_path / "tiny.yaml").write_text(TINY + "matrix: {over: {seed: [0, 1, 2, 3, 4]}}\nselect: {minimise: [bytes]}\n")
    study = load(tmp_path / "tiny.yaml")
    assert isinstance(study, Study)
    for slots, most in ((2, 2), (1, 1)):
        seen.clear()
        run = StudyRun(study, Site(home=tmp_path / f"home{slots}", threads=1, cpu_slots=slots))
        run.run_inline()
        run.finish()
        assert (len(seen), max(seen)) == (5, most)


def stages_of(run: psutil.Process) -> Iterator[int]:
    """The processes of a run that compute a stage now, seen from outside: new ones, and those of the warm worker."""
    for child in run.children(recursive=True):
        try:
            words, parent = child.cmdline(), child.ppid()
        except psutil.Error:
            continue
        if "kdq_core.worker.main" in words or ("kdq_core.worker.warm" in words and parent != run.pid):
            yield child.pid


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_cpu_leases_run_two_branches_at_once_and_never_three(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "tiny.yaml").write_text(TINY + "matrix: {over: {quantize.weights: [8, 7, 6, 5]}}\n"
                                        "select: {minimise: [bytes]}\n")  # fmt: skip
    words = [str(KDQ), "run", str(tmp_path / "tiny.yaml"), "--no-server", "--json"]
    given = environment(home) | {"KDQ_CPU_SLOTS": "2", "KDQ_LEASES": str(tmp_path / "leases")}
    with subprocess.Popen(words, env=given, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        seen = Counter[int]()
        while run.poll() is None:
            seen[len({*stages_of(psutil.Process(run.pid))})] += 1
            time.sleep(0.05)
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.returncode == 0, run.stderr.read().decode()
        result = json.loads(run.stdout.read().splitlines()[-1])
    assert max(seen) == 2, seen
    assert {one["status"] for one in result["branches"]} == {"completed"}
    once = dict.fromkeys(("train_teacher", "cache_teacher", "distill"), 1)
    assert stored(home) == once | dict.fromkeys(("quantize", "export", "evaluate"), 4) | {"register": 1}


MODEL = """
import torch
from torch import nn

def data(split):
    count = {"train": 203, "validation": 50, "test": 50}[split]  # the last batch is odd
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    labels = (x[:, 0] * x[:, 1] > 0).long()
    if split == "train":
        labels[::3] = -100
    return {"x": x, "labels": labels}

def net(width):
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2))

def teacher():
    return net(32)

def student():
    return net(8)
"""
SHARED = """
name: shared
workload: {use: python, options: {model: "model.py:student", teacher: "model.py:teacher", data: "model.py:data"}}
teacher: {fit: {epochs: 3, batch_size: 64, devices: DEVICES}}
distill: {fit: {epochs: 3, batch_size: 64, clip_norm: 0.5, devices: DEVICES}}
stages: [train_teacher, cache_teacher, distill]
"""


Trained = dict[str, tuple[list[Any], dict[str, Any]]]


def trained_on(home: Path, recipe: str, given: dict[str, str]) -> Trained:
    """The curves and weights that the stages of `recipe` give, by stage."""
    Path("shared.yaml").write_text(recipe)
    done = subprocess.run(
        [KDQ, "run", "shared.yaml", "--no-server"], env=environment(home) | given, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list((home / "scratch").glob("*"))
    manifests = [(path.parent, json.loads(path.read_bytes())) for path in (home / "store").glob("??/*/manifest.json")]
    return {
        manifest["stage"]: (manifest["record"]["history"], load_file(folder / manifest["record"]["weights"]))
        for folder, manifest in manifests
        if manifest["stage"] != "cache_teacher"
    }


def compared(one: Trained, two: Trained) -> None:
    """Both have the same curves and weights, up to rounding."""
    assert one.keys() == two.keys() == {"train_teacher", "distill"}
    for stage, (history, weights) in one.items():
        other, shared = two[stage]
        for mine, theirs in zip(history, other, strict=True):
            assert theirs["values"] == pytest.approx(mine["values"], rel=1e-4)
        for name, weight in weights.items():
            assert_close(shared[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.rare
@pytest.mark.slow
def test_two_devices_give_the_curves_and_weights_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same effective batch, with gloo on two CPU slots; each stage leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    one, two = (
        trained_on(tmp_path / f"home{n}", SHARED.replace("DEVICES", str(n)), {"KDQ_CPU_SLOTS": "2"}) for n in (1, 2)
    )
    compared(one, two)


@pytest.mark.rare
@pytest.mark.slow
def test_the_error_of_another_process_is_that_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    broken = (
        MODEL + "\nimport os\nif os.environ.get('KDQ_RANK'):\n    raise ZeroDivisionError('in the second process')\n"
    )
    Path("model.py").write_text(broken)
    Path("shared.yaml").write_text(SHARED.replace("DEVICES", "2"))
    given = environment(tmp_path / "home") | {"KDQ_CPU_SLOTS": "2"}
    began = time.monotonic()
    done = subprocess.run(
        [KDQ, "run", "shared.yaml", "--no-server"], env=given, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "in the second process" in " ".join(done.stderr.split())
    assert time.monotonic() - began < 60
    assert not [one for one in psutil.process_iter(["environ"]) if _is_rank(one, tmp_path)]


def _is_rank(process: psutil.Process, home: Path) -> bool:
    met = (process.info["environ"] or {}).get("KDQ_RANKS_MEET", "")
    return met.startswith(str(home)) and process.pid != os.getpid()


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_flows_on_postgresql_share_two_leases_and_all_finish(tmp_path: Path) -> None:
    """Never three stages, seen from outside; each flow is Completed in a Prefect server on PostgreSQL."""
    home = tmp_path / "home"
    short = "stages: [train_teacher, cache_teacher, distill]\n"
    text = TINY.replace("quantize: {fit: {epochs: 1}}\nevaluate: [quality, size]\ngates: []\n", short)
    with postgres() as database:
        given = environment(home) | {
            "KDQ_CPU_SLOTS": "2", "KDQ_LEASES": str(tmp_path / "leases"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        }  # fmt: skip
        subprocess.run([KDQ, "up"], env=given, cwd=tmp_path, check=True, timeout=200)
        try:
            runs = []
            for seed in range(8):
                (tmp_path / f"{seed}.yaml").write_text(f"{text}seed: {seed}\n")
                words = [str(KDQ), "run", f"{seed}.yaml", "--json"]
                runs.append(subprocess.Popen(words, env=given, cwd=tmp_path, stdout=subprocess.PIPE, text=True))
            seen = Counter[int]()
            while any(run.poll() is None for run in runs):
                seen[len({stage for run in runs if run.poll() is None for stage in _stages_of(run.pid)})] += 1
                time.sleep(0.05)
            ends = [json.loads(run.communicate()[0].splitlines()[-1]) for run in runs]
            states = ask_prefect(home, "flow_runs", {})
        finally:
            subprocess.run([KDQ, "down"], env=given, cwd=tmp_path, check=True, timeout=100)
    assert [end["status"] for end in ends] == ["completed"] * 8
    assert max(seen) == 2, seen
    assert Counter(state["state_type"] for state in states) == {"COMPLETED": 8}
    assert stored(home) == dict.fromkeys(("train_teacher", "cache_teacher", "distill"), 8)


def _stages_of(pid: int) -> set[int]:
    try:
        return {*stages_of(psutil.Process(pid))}
    except psutil.Error:
        return set()
