"""What several rooms' tests share."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import EntryPoint, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from kdq_core.plugins.catalog import Catalog

os.environ["OMP_NUM_THREADS"] = "1"  # the suite runs in several processes: threads would only wait for each other
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # otherwise importing onnxruntime writes to the user's home folder
os.environ["KDQ_LEASES"] = tempfile.mkdtemp(prefix="kdq-leases-")  # no test waits for another process's
atexit.register(shutil.rmtree, os.environ["KDQ_LEASES"], ignore_errors=True)
settings.register_profile("kdq", deadline=None)  # a busy machine is no failure
settings.load_profile("kdq")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_collect() -> None:
    """Keep what earlier files left out of later collections, because each stage collects once."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guest distributions pip-installed; put it on a child's PYTHONPATH."""
    target = tmp_path_factory.mktemp("guests")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    folders = sorted(map(str, (ROOT / "tests" / "guest").iterdir()))
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), *folders], check=True, timeout=120)
    return target


@pytest.fixture(scope="session")
def with_examples() -> Catalog:
    """KDQ's own plug-ins and those of examples/, which are on the path and not installed."""
    from kdq_core.plugins.catalog import Catalog

    project = tomllib.loads((ROOT / "examples" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    examples = [EntryPoint(name, value, "kdq") for name, value in project["entry-points"]["kdq"].items()]
    return Catalog.load([*distribution("kdq").entry_points.select(group="kdq"), *examples])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none; begin with the files that take longest."""
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name not in ("test_run.py", "test_demo.py"), item.path not in slow))
