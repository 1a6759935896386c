"""The package of examples installs, and brings its workloads with their table of files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.rare
@pytest.mark.slow
def test_the_installed_package_brings_its_workloads(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(tmp_path), str(ROOT / "examples")], check=True, timeout=120
    )
    paths = os.pathsep.join((str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])))
    kdq = [sys.executable, "-m", "kdq", "plugins", "list", "--json"]
    done = subprocess.run(
        kdq, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, capture_output=True, check=True, timeout=100
    )
    states = {row["name"]: row["state"] for row in json.loads(done.stdout)}
    assert states["fashion-mnist"] == states["clinc150"] == "ok"
    assert (tmp_path / "kdq_examples" / "files.toml").is_file()
