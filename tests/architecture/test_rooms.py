"""The rules of the house that are tests, not paragraphs."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kdq_core.plugins import hookspecs
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.loading import CatalogEntry

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kdq_core", "flows", "registry", "plugins")
PRODUCT = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
CARD = ("What", "Source|Defaults", "Limits")
FULL_CARD = ("What", "Formula", "Source", "Defaults", "Costs", "Limits")
HEAVY = {
    "torch", "onnx", "onnxruntime", "openvino", "scipy", "sklearn", "pandas", "mlflow", "prefect", "accelerate",
    "torchmetrics",
}  # fmt: skip


def house() -> tuple[CatalogEntry, ...]:
    entry_points = importlib.metadata.distribution("kdq").entry_points.select(group="kdq")
    return Catalog.load(entry_points).entries


HOUSE = house()
BY_NAME = [pytest.param(entry, id=f"{entry.kind}-{entry.name}") for entry in HOUSE]


def source_of(entry: CatalogEntry) -> Path:
    module = entry.target.partition(":")[0]
    return ROOT / "plugins" / Path(*module.split(".")).with_suffix(".py")


def test_the_import_contracts_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contract_for_plugins_names_every_module_of_the_core_but_api() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (contract,) = [one for one in contracts if one["name"] == "a plug-in imports nothing of KDQ but kdq_core.api"]
    core = {path.stem for path in (ROOT / "kdq_core").glob("*.py")} - {"__init__", "api"}
    core |= {path.parent.name for path in (ROOT / "kdq_core").glob("*/__init__.py")}
    assert {f"kdq_core.{name}" for name in core} == set(contract["forbidden_modules"]) - {"kdq_flows", "kdq_registry"}


def test_the_store_of_a_site_is_opened_by_open_store_alone() -> None:
    direct = {
        path.relative_to(ROOT).as_posix() for path in PRODUCT if re.search(r"\bStore\(\S+\.store\)", path.read_text())
    }
    assert direct == {"kdq_core/store/__init__.py", "flows/kdq_flows/seeing/shared_store.py"}  # it, and the read cache


def test_the_product_is_found() -> None:
    assert len(PRODUCT) > 40


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"function {node.name!r} is longer than 60 lines"


@pytest.mark.parametrize("name", sorted(name for name in vars(hookspecs) if name.startswith("kdq_")))
def test_every_hook_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(hookspecs, name))


@pytest.mark.parametrize("entry", BY_NAME)
def test_every_house_plugin_has_a_method_card(entry: CatalogEntry) -> None:
    card = ast.get_docstring(ast.parse(source_of(entry).read_text(encoding="utf-8"))) or ""
    wanted = FULL_CARD if entry.kind in ("quantizer", "distiller") else CARD
    missing = [heading for heading in wanted if not re.search(rf"^({heading})\b", card, re.MULTILINE)]
    assert missing == []


@pytest.mark.parametrize("entry", BY_NAME)
def test_every_option_of_a_house_plugin_is_described(entry: CatalogEntry) -> None:
    schema = Catalog((), ()).options_schema(entry)
    assert [name for name, field in schema.get("properties", {}).items() if not field.get("description")] == []


def test_importing_the_house_plugins_imports_nothing_heavy() -> None:
    modules = sorted({entry.target.partition(":")[0] for entry in HOUSE})
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; print({HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


def test_mlflows_fluent_and_process_global_calls_are_banned() -> None:
    calls = [
        "active_run", "autolog", "end_run", "log_artifact", "log_artifacts", "log_dict", "log_figure",
        "log_metric", "log_metrics", "log_param", "log_params", "log_text", "register_model",
        "set_experiment", "set_registry_uri", "set_tag", "set_tags", "set_tracking_uri", "start_run",
        "onnx.log_model", "pyfunc.log_model", "pytorch.log_model",
    ]  # fmt: skip
    code = "import mlflow\n" + "".join(f"mlflow.{call}()\n" for call in calls)
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--output-format", "json", "-"]
    done = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True, timeout=60)
    assert sorted({found["message"].split("`")[1] for found in json.loads(done.stdout)}) == sorted(
        f"mlflow.{call}" for call in calls
    )


def test_every_test_is_a_function_and_none_is_skipped() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        classes = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
        assert [name for name in classes if name.startswith("Test")] == [], path
        assert f"mark.{'skip'}" not in text, path
        assert f"mark.{'xfail'}" not in text, path
