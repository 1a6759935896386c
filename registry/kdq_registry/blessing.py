"""Looks at the files of a version before it is promoted: they must be those that KDQ registered, and must answer."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.errors import StageError, listing
from kdq_core.store.hashing import sha256_file
from kdq_registry.environment import folder
from kdq_registry.versions import SHA_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site

FILE = "model.onnx"
FILES = frozenset({
    "MLmodel", FILE, "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json",
    "serving_input_example.json",
})  # fmt: skip
"""The files that KDQ registers."""
LOADER = "mlflow.onnx"
SECONDS = 120
ANSWERS = """
import json, sys
import numpy as np, onnxruntime
path, example = sys.argv[1:]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
given = json.load(open(example))["inputs"]
inputs = {one.name: one for one in session.get_inputs()}
if not isinstance(given, dict):
    given = {next(iter(inputs)): given}
dtypes = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool"}
outputs = session.run(None, {name: np.array(value, dtypes.get(inputs[name].type)) for name, value in given.items()})
if not all(np.isfinite(one).all() for one in outputs):
    sys.exit("it answers its example with NaN or infinity")
"""
"""Runs in a process of its own, with ONNX Runtime and NumPy alone."""


def bless(site: Site, mlflow: MlflowClient, version: Any) -> None:
    """Fetch all files of a version afresh and check them; nothing in them is unpickled.

    Raises:
        StageError: a file is missing, foreign or changed, the flavour is another, or the model does not answer.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    address = mlflow.get_model_version_download_uri(version.name, version.version)
    files = get_artifact_repository(address, tracking_uri=site.mlflow_uri, registry_uri=site.mlflow_uri)
    with tempfile.TemporaryDirectory(dir=folder(site)) as scratch:
        wrong = next(_wrong(Path(_downloaded(files, scratch)), version), None)
    if wrong is not None:
        raise StageError(
            f"version {version.version} of model {version.name!r} cannot be promoted: {wrong}; promote another "
            "version, or register the model again"
        )


def _downloaded(files: Any, scratch: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(files.download_artifacts("", scratch))
    except (OSError, MlflowException):
        return scratch  # `_wrong` names what is missing


def _wrong(root: Path, version: Any) -> Iterator[str]:
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    missing = sorted({"MLmodel", FILE, "input_example.json"} - there)
    if missing:
        yield f"its file {missing[0]!r} is missing"
        return
    foreign = sorted(there - FILES)
    if foreign:
        yield f"it has files that KDQ did not register: {listing(foreign)}"
    yield from _of_description(root / "MLmodel")
    sha256, tag = sha256_file(root / FILE), version.tags.get(SHA_TAG, "")
    if sha256 != tag:
        yield f"{FILE!r} has the sha256 {sha256[:12]}, but its tag {SHA_TAG!r} says {tag[:12]}"
    yield from _of_answers(root)


def _of_description(path: Path) -> Iterator[str]:
    """What is wrong with `MLmodel`; it is read as plain YAML."""
    import yaml

    try:
        flavors = yaml.safe_load(path.read_text(encoding="utf-8"))["flavors"]
        names, loader = set(flavors), flavors.get("python_function", {}).get("loader_module", LOADER)
        data = flavors.get("onnx", {}).get("data")
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        yield f"its file 'MLmodel' cannot be read ({type(error).__name__})"
        return
    if names != {"onnx", "python_function"} or loader != LOADER or data != FILE:
        said = f"flavours {listing(sorted(names))}, loader {loader!r}, data {data!r}"
        yield f"its file 'MLmodel' describes another kind of model than KDQ registers ({said})"


def _of_answers(root: Path) -> Iterator[str]:
    """Run the model on its example in a clean process."""
    (root / "example.json").write_text(_example(root), encoding="utf-8")
    words = [sys.executable, "-I", "-c", ANSWERS, str(root / FILE), str(root / "example.json")]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        yield f"it does not answer its example within {SECONDS} s"
        return
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        yield f"it does not answer its example: {last[0][:300]}"


def _example(root: Path) -> str:
    text = (root / "input_example.json").read_text(encoding="utf-8")
    found = json.loads(text)
    return json.dumps(found if isinstance(found, dict) and "inputs" in found else {"inputs": found})
