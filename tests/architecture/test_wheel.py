"""What users install is the wheel, not the checkout: it is built, installed elsewhere and run from there."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "KDQ_"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_in_a_venv_of_its_own_outside_the_checkout(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("kdq-*.whl")
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies come from the parent's site-packages. A plain path runs no *.pth found there, so the checkout's
    # editable install stays out of sight.
    packages = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip())
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")

    code = (
        "import kdq_core, kdq_flows, kdq_registry, kdq_quantizers as q; print(kdq_core.__file__, q.__file__, sep='\\n')"
    )
    found = [Path(line) for line in run(python, "-c", code, cwd=tmp_path).splitlines()]
    assert all(path.is_relative_to(venv) for path in found)

    kdq = venv / "bin" / "kdq"
    shutil.copy(ROOT / "recipes" / "digits.yaml", tmp_path / "digits.yaml")
    assert run(kdq, "--version", cwd=tmp_path) == f"kdq {wheel.name.split('-')[1]}\n"
    assert run(kdq, "validate", "digits.yaml", cwd=tmp_path).startswith("digits.yaml is valid: workload digits; ")
    states = {row["name"]: row["state"] for row in json.loads(run(kdq, "plugins", "list", "--json", cwd=tmp_path))}
    assert states["digits"] == states["minmax-qat"] == states["onnxruntime-cpu"] == states["openvino"] == "ok"
    assert json.loads(run(kdq, "schema", cwd=tmp_path))["title"] == "Recipe"
    assert "wrote  start/my_model.py" in run(kdq, "init", "--from", "text", "start", cwd=tmp_path)
    assert run(kdq, "validate", "recipe.yaml", cwd=tmp_path / "start").startswith("recipe.yaml is valid: ")
    assert "wrote  kdq-mine/README.md" in run(kdq, "plugins", "new", "stage", "mine", cwd=tmp_path)
