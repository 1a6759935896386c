"""One environment for each peer, above one with PyTorch and ONNX Runtime that all share; made when first needed."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PINS = Path(__file__).with_name("pins.toml")
BASE = "base"
MADE = "made.txt"
"""What the environment was made from; written last."""


def pins() -> dict[str, list[str]]:
    """Return what each environment installs."""
    return {name: table["install"] for name, table in _tables().items()}


def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads(PINS.read_text(encoding="utf-8"))


def quiet(venvs: Path) -> dict[str, str]:
    """Return the variables that the peers need: no telemetry, and time and a place to compile their extensions."""
    return {
        "NNCF_CI": "1", "NNCF_EXTENSION_LOAD_TIMEOUT": "0", "TORCH_EXTENSIONS_DIR": str(venvs / "torch_extensions"),
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


def python_of(peer: str, venvs: Path) -> Path:
    """Return the Python of a peer's environment, which is made first if need be.

    Raises:
        CalledProcessError: pip cannot install it; `stderr` says why.
    """
    known = pins()
    name = peer if peer in known else BASE
    wanted = "\n".join(known[BASE] + (known[name] if name != BASE else []))
    folder = venvs / name
    python = folder / "bin" / "python"
    if (folder / MADE).is_file() and (folder / MADE).read_text(encoding="utf-8") == wanted:
        return python
    print(f"making the environment {name!r} in {folder}", file=sys.stderr, flush=True)
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    constraints = venvs / "base.txt"
    constraints.write_text("\n".join(known[BASE]) + "\n", encoding="utf-8")
    if name != BASE:
        below = packages(python_of(BASE, venvs))
        (packages(python) / "base.pth").write_text(f"import site; site.addsitedir({str(below)!r})\n", encoding="utf-8")
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--constraint", str(constraints))
    _run(str(python), *pip, *known[name])
    if first := _tables()[name].get("first"):
        path = os.pathsep.join((str(python.parent), os.environ.get("PATH", "")))
        _run(str(python), "-c", first, more={**quiet(venvs), "PATH": path})
    (folder / MADE).write_text(wanted, encoding="utf-8")
    return python


def packages(python: Path) -> Path:
    """Return the folder of an environment's packages."""
    asked = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(_run(str(python), "-c", asked).strip())


def _run(*command: str, more: Mapping[str, str] | None = None) -> str:
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | dict(more or {})
    return subprocess.run(command, check=True, capture_output=True, text=True, env=ours).stdout
