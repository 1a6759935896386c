"""A baseline that cannot be trusted stops the comparison: planted faults in the data, through `kdq run`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

pytestmark = [pytest.mark.slow, pytest.mark.rare, pytest.mark.timeout(600)]

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.head = nn.Linear(64 * width, 10)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))

def teacher():
    return Net(8)
"""
RECIPE = """
name: planted
workload: {use: arrays, options: {file: data.npz, model: "anomalous_net.py:Net", teacher: "anomalous_net.py:teacher"}}
teacher: {fit: {epochs: 4, learning_rate: 1.0e-2}}
distill: {fit: {epochs: 4, learning_rate: 1.0e-2}}
stages: [train_teacher, distill, quantize, export, evaluate]
quantize: {use: static}
evaluate: [quality, size]
gates: [{metric: top1, at_least: 0.5, relative_to: student}]
"""


@pytest.mark.parametrize(
    ("fault", "rules"),
    [("shared", ["share of test samples in 'train'"]), ("lost", ["student top1 on 'test'", "teacher top1 on 'test'"])],
)
def test_the_run_says_that_the_models_cannot_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, rules: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDQ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KDQ_THREADS", "1")
    Path("anomalous_net.py").write_text(NET)
    Path("planted.yaml").write_text(RECIPE)
    digits = load_digits()
    x, y = np.float32(digits.images[:, None] / 16), digits.target
    test: dict[str, Any] = {"x_test": x[1400:], "y_test": y[1400:]}
    if fault == "shared":
        test = {"x_test": x[1000:], "y_test": y[1000:]}  # 400 of these are trained on
    else:
        test["x_test"] = np.rot90(test["x_test"], 2, (2, 3))  # prepared in another way than the training split
    np.savez("data.npz", x_train=x[:1400], y_train=y[:1400], **test)

    kdq = Path(sys.executable).with_name("kdq")
    done = subprocess.run(
        [kdq, "run", "planted.yaml", "--no-server", "--json"], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert [odd["rule"] for odd in facts["anomalies"]] == rules
    assert facts["verdict"].startswith(f"NOT COMPARABLE: {rules[0]} is 0.")
    assert "points" not in facts["verdict"]
    assert [gate["met"] for gate in facts["gates"]] == [False] * (len(rules) + 1)
    page = Path(facts["report"]).read_text()
    assert f'<p class="verdict">NOT COMPARABLE: {rules[0].replace(chr(39), "&#39;")}' in page
    assert "split the data anew" in page if fault == "shared" else "is prepared in another way" in page
    again = subprocess.run([kdq, "run", "planted.yaml", "--no-server"], capture_output=True, text=True, timeout=500)
    assert "NOT COMPARABLE" in again.stdout
