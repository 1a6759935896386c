"""The code of KDQ's own plug-ins: the files that they reach, and no others."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from kdq_core import api
from kdq_core.errors import PluginError
from kdq_core.plugins import sources
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.code_version import Code, code_of
from kdq_core.plugins.imports import Import
from kdq_core.plugins.reach import OWN, reached

ROOT = Path(__file__).resolve().parents[3]
Edit = Callable[[str], None]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """KDQ's sources, copied: what is reached is looked for there."""
    for package in (ROOT / "kdq_core", *(ROOT / "plugins").glob("kdq_*")):
        shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "places", lambda top: [str(tmp_path / top)] if (tmp_path / top).is_dir() else [])
    return tmp_path


def add(path: Path, text: str = "\n# a comment\n") -> None:
    with path.open("a") as file:
        file.write(text)


def workload() -> Code:
    return code_of("kdq_workloads.digits:Digits", "kdq")


def test_the_packages_of_kdq_are_those_of_its_wheel() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {Path(package).name for package in built["packages"]} | {"kdq_stages"} == OWN


def test_a_house_plugin_holds_its_sources_without_version_or_libraries() -> None:
    code = workload()
    assert code.libraries == {}
    assert code.text.startswith("sha256:")
    assert len(code.text) == len("sha256:") + 16
    assert code_of("kdq_workloads.digits", "") == code


def test_a_comment_in_a_file_that_is_not_reached_changes_nothing(tree: Path) -> None:
    before = workload()
    for name in ("kdq_core/quantization/prepare.py", "kdq_core/api.py", "kdq_core/plan/gates.py",
                 "kdq_core/testing/toys.py", "kdq_workloads/plugin.py", "kdq_distillers/logit_kd.py"):  # fmt: skip
        add(tree / name)
    assert workload() == before


@pytest.mark.parametrize(
    "name",
    [
        "kdq_workloads/digits.py", "kdq_workloads/digits_models.py", "kdq_workloads/__init__.py",
        "kdq_core/__init__.py", "kdq_core/plugins/__init__.py", "kdq_core/plugins/kinds.py", "kdq_core/frozen.py",
    ],
)  # fmt: skip
def test_a_file_that_is_reached_changes_the_code(name: str, tree: Path) -> None:
    before = workload()
    add(tree / name)
    assert workload() != before


def test_a_file_is_reached_from_within_a_function_by_either_form_and_by_a_written_name(tree: Path) -> None:
    for number, line in enumerate(
        ("import kdq_core.new{}", "from kdq_core import new{}", "from kdq_core.new{} import x",
         "import importlib; importlib.import_module('kdq_core.new{}')")
    ):  # fmt: skip
        (tree / f"kdq_core/new{number}.py").write_text("x = 1")
        add(tree / "kdq_workloads/digits_models.py", f"\ndef f{number}():\n    {line.format(number)}\n")
        before = workload()
        add(tree / f"kdq_core/new{number}.py")
        assert workload() != before, line


def test_what_is_imported_for_types_alone_is_not_reached(tree: Path) -> None:
    (tree / "kdq_core/new.py").write_text("x = 1")
    add(tree / "kdq_workloads/digits_models.py", "\nif TYPE_CHECKING:\n    from kdq_core.new import x\n")
    before = workload()
    add(tree / "kdq_core/new.py")
    assert workload() == before


def test_relative_imports_lead_to_modules_beside_and_above(tree: Path) -> None:
    files = {
        "kdq_stages/__init__.py": "", "kdq_stages/a/__init__.py": "from .b import x", "kdq_stages/a/b.py": "x = 1",
        "kdq_stages/a/c.py": "from .. import d\nfrom ..e import x", "kdq_stages/d.py": "", "kdq_stages/e.py": "x = 1",
        "kdq_stages/f.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    found = reached([Import("kdq_stages.a.c")])
    assert set(found) == {f"kdq_stages{rest}" for rest in ("", ".a", ".a.b", ".a.c", ".d", ".e")}


def test_a_mistake_in_a_file_or_a_module_that_is_not_there_stops_nothing(tree: Path) -> None:
    add(tree / "kdq_workloads/digits_models.py", "\nimport kdq_core.nowhere, kdq_nowhere\n1 +\n")
    assert workload().text.startswith("sha256:")


def test_a_circle_of_imports_ends(tree: Path) -> None:
    (tree / "kdq_core/one.py").write_text("import kdq_core.two")
    (tree / "kdq_core/two.py").write_text("import kdq_core.one")
    assert set(reached([Import("kdq_core.one")])) == {"kdq_core", "kdq_core.one", "kdq_core.two"}


@pytest.mark.parametrize("name", sorted(set(api.__all__) - {"Field"}))
def test_a_name_of_the_api_leads_to_the_module_that_defines_it_and_to_no_api(name: str) -> None:
    found = reached([Import("kdq_core.api", (name,))])
    assert "kdq_core.api" not in found
    (module,) = [one for one in found if name in names_defined_in(one)]
    assert getattr(importlib.import_module(module), name) is getattr(api, name)


def names_defined_in(module: str) -> set[str]:
    spec = importlib.util.find_spec(module)
    assert spec
    assert spec.origin
    body = ast.parse(Path(spec.origin).read_bytes()).body
    targets = {getattr(one, "id", "") for node in body if isinstance(node, ast.Assign) for one in node.targets}
    return targets | {getattr(getattr(node, "target", node), "id", getattr(node, "name", "")) for node in body}


def test_a_name_of_the_api_that_is_a_library_s_leads_nowhere_in_kdq() -> None:
    assert reached([Import("kdq_core.api", ("Field",))]) == {}


@pytest.mark.parametrize(
    "one",
    [Import("kdq_core.api"), Import("kdq_core", ("api",)), Import("kdq_core.api", ("*",)),
     Import("kdq_core.api", ("no_such_name",))],
    ids=["module", "from its package", "star", "unknown"],
)  # fmt: skip
def test_the_api_as_a_whole_reaches_all_that_it_names(one: Import) -> None:
    found = set(reached([one]))
    assert found >= {"kdq_core.api", "kdq_core.quantization.recurrent", "kdq_core.plugins.kinds"}
    assert found >= set(reached([Import("kdq_core.api", tuple(api.__all__))]))


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(PluginError) as caught:
        code_of("kdq_workloads.nowhere:X", "kdq")
    assert (
        str(caught.value) == "module 'kdq_workloads.nowhere' is not there, though a plug-in names it; reinstall 'kdq'"
    )


def test_no_file_is_read_twice_and_an_edited_one_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entries = Catalog.load().entries
    before = [code_of(entry.target, entry.distribution) for entry in entries]
    read, seen = sources._read, list[str]()
    monkeypatch.setattr(sources, "_read", lambda path: seen.append(path) or read(path))  # type: ignore[func-returns-value]
    monkeypatch.setattr(sources, "settled", lambda changed: True)
    assert [code_of(entry.target, entry.distribution) for entry in entries] == before
    assert seen == []
    file = tmp_path / "a.py"
    for text in ("x = 1", "x = 123", "import a"):
        file.write_text(text)
        assert sources.read(str(file)) == sources.read(str(file)) == read(str(file))
    assert seen == [str(file)] * 3


def test_a_file_that_has_just_changed_is_read_again_whatever_the_clock_says(tmp_path: Path) -> None:
    """Two edits within a tick of the clock have one time."""
    file = tmp_path / "a.py"
    file.write_text("x = 1")
    first = sources.read(str(file))
    assert sources._known.get(str(file)) is None
    assert first is not sources.read(str(file))
