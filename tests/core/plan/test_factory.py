"""The code of a teacher's factory: its package and all that it imports, without importing any."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kdq_core.errors import RecipeError
from kdq_core.plan.factory import factory_code


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `my_nets` on the path."""
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)  # another test's
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "my_nets"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "make.py").write_text("import big, my_layers")
    return package


def test_the_code_of_a_factory_changes_with_its_package_with_what_that_imports_and_with_versions(
    nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = nets.parent / "site-packages"
    info = site / "big-1.dist-info"
    info.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(site))
    seen = [factory_code("my_nets.make")]
    assert seen[0].startswith("sha256:")
    assert len(seen[0]) == len("sha256:") + 16
    assert factory_code("my_nets") == seen[0]
    (info / "RECORD").write_text("big.py,,\n")
    (info / "METADATA").write_text("Name: big\nVersion: 1\n")
    for path, text in (
        (nets / "blocks.py", "WIDTH = 8"),
        (nets.parent / "my_layers.py", "DEPTH = 2"),
        (site / "big.py", ""),
        (info / "METADATA", "Name: big\nVersion: 2\n"),
    ):
        path.write_text(text)
        seen.append(factory_code("my_nets.make"))
    assert len(set(seen)) == len(seen)
    assert "my_nets" not in sys.modules


def test_a_factory_of_kdq_itself_holds_the_files_it_reaches() -> None:
    assert factory_code("kdq_workloads.digits_models") != factory_code("kdq_workloads.digits")


@pytest.mark.parametrize("name", ["my_nets.nowhere", "my_nets.make.inner", "nowhere", "folder", "__main__"])
def test_a_module_that_is_not_there_is_told_as_the_recipe_s_mistake(name: str, nets: Path) -> None:
    (nets.parent / "folder").mkdir()
    with pytest.raises(RecipeError) as caught:
        factory_code(name)
    assert str(caught.value) == (
        f"the teacher's factory is in {name!r}, and there is no such module; install its package, put its folder on "
        "PYTHONPATH, or correct 'factory' in 'teacher.members' (the folder kdq runs in is not searched)"
    )
