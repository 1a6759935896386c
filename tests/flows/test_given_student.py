"""Post-training quantization of a model at hand, through the command line, in a recipe of five lines."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECIPE = """name: ptq
workload: digits
student: {source: checkpoint, file: net.safetensors, factory: "my_net:make"}
stages: [quantize, export, evaluate, register]
quantize: {use: static}
"""
FACTORY = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
"""
STAGES = ["read_student", "quantize", "export", "evaluate", "register"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, a factory and weights that were trained for a moment."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    for name, value in {"KDQ_HOME": str(tmp_path / "home"), "KDQ_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    Path("my_net.py").write_text(FACTORY)
    Path("ptq.yaml").write_text(RECIPE)
    from my_net import make  # type: ignore[import-not-found]

    from kdq_core.plugins.catalog import Catalog

    workload: Any = Catalog.load().build("workload", "digits")
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for batch in workload.batches("train", batch_size=64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(*batch.inputs), batch.targets).backward()
        optimizer.step()
    save_file(model.state_dict(), "net.safetensors")
    return tmp_path


def kdq(*words: str) -> str:
    done = subprocess.run([Path(sys.executable).with_name("kdq"), *words], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.rare
def test_a_model_at_hand_is_quantized_measured_and_registered_once(folder: Path) -> None:
    assert "stages read_student, quantize, export, evaluate, register" in kdq("validate", "ptq.yaml")
    planned = json.loads(kdq("plan", "ptq.yaml", "--json"))
    assert [(row["stage"], row["state"]) for row in planned] == [(name, "run") for name in STAGES]
    result = json.loads(kdq("run", "ptq.yaml", "--no-server", "--json").splitlines()[-1])
    assert result["status"] == "completed"
    assert [row["model"] for row in result["table"]] == ["float student", "int8 student"]
    assert sorted(result["models"]) == ["int8", "student"]
    met = {gate["rule"]: gate["met"] for gate in result["gates"]}
    assert met.keys() - {"int8 speedup (low end) \u2265 0.98"} == {
        "int8 coverage_macs \u2265 1",
        "int8 parity_flips \u2264 0",
    }
    assert met["int8 coverage_macs \u2265 1"]
    assert met["int8 parity_flips \u2264 0"]
    assert result["version"] == {"name": "ptq", "version": 1}
    given = load_file("net.safetensors")
    kept = load_file(result["weights"]["student"])
    assert kept.keys() == given.keys()
    assert all(torch.equal(kept[name], value) for name, value in given.items())
    from my_net import make

    model = make().eval()
    model.load_state_dict(given)
    x = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    session = onnxruntime.InferenceSession(Path(result["artifact"]["path"]).with_name("student.onnx"))
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    assert np.abs(session.run(None, {session.get_inputs()[0].name: x})[0] - wanted).max() <= 1e-5
    with closing(sqlite3.connect(folder / "home" / "mlflow" / "mlflow.db")) as database:
        tags = dict(database.execute("select key, value from model_version_tags").fetchall())
    lineage = {name.removeprefix("kdq.lineage.") for name in tags if name.startswith("kdq.lineage.")}
    assert lineage == {*STAGES[:4], "data", "recipe"}
    again = json.loads(kdq("run", "ptq.yaml", "--no-server", "--json").splitlines()[-1])
    assert (again["status"], again["version"]) == ("no-news", {"name": "ptq", "version": 1})
    assert [row["state"] for row in json.loads(kdq("plan", "ptq.yaml", "--json"))] == ["cached"] * 5
    Path("ptq.yaml").write_text(RECIPE.replace(", evaluate, register", "") + "seed: 1\n")
    said = kdq("run", "ptq.yaml", "--no-server")
    assert ": completed in " in said.splitlines()[0]
    assert said.splitlines()[0].endswith(" s; no stage of the recipe measures a model, so there is no table")
    assert "file      " in said
