"""Plug-ins and factories from a file of the user's, without a package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import PluginError, RecipeError
from kdq_core.plan.plan import make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.user_code import user_module, user_object
from kdq_core.recipe.spec import Recipe, Site

QUANTIZER = """
from kdq_core.api import Field, Quantizer

from own_ranges import SCALE

class Mine(Quantizer):
    \"\"\"A quantizer in a file.\"\"\"

    trains = False
    factor: float = Field(default=SCALE, gt=0, le=2, description="a factor")

    def fake_quantizer(self, place):
        raise NotImplementedError

class Half(Quantizer):
    pass
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a plug-in and a module that it imports; Python forgets both."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    Path("my_quantizer.py").write_text(QUANTIZER)
    Path("own_ranges.py").write_text("SCALE = 1.0\n")
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def planned(home: Path, use: str = "./my_quantizer.py:Mine", **options: Any) -> Any:
    sections = {"quantize": {"use": use, "options": options}, "workload": "digits", "name": "x"}
    return make_plan(Recipe.model_validate(sections), Site(home=home), Catalog.load())


def test_a_plugin_is_used_by_the_path_of_its_file(folder: Path) -> None:
    node = planned(folder, factor=0.5).node("quantize")
    assert node.parts["recipe"]["quantize"]["options"] == {"factor": 0.5}
    built: Any = Catalog.load().build("quantizer", "./my_quantizer.py:Mine", {"factor": 2})
    assert built.factor == 2.0
    with pytest.raises(RecipeError) as caught:
        Catalog.load().build("quantizer", "./my_quantizer.py:Mine", {"factor": 3})
    assert str(caught.value).startswith("option 'factor' of quantizer './my_quantizer.py:Mine' is 3; allowed: ")


def test_an_edit_of_the_file_or_of_what_it_imports_changes_the_key(folder: Path) -> None:
    keys = [planned(folder).node("quantize").parts["code"]]
    for name in ("my_quantizer.py", "own_ranges.py"):
        Path(name).write_text(Path(name).read_text() + "\n# edited\n")
        keys.append(planned(folder).node("quantize").parts["code"])
    assert len({str(key) for key in keys}) == 3


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        ("./no.py:Mine", RecipeError,
         "'./no.py' is not there, seen from {folder!r}; correct the path, or give it whole"),
        ("./my_quantizer.py:Half", PluginError,
         "quantizer './my_quantizer.py:Half' is incomplete: 'my_quantizer:Half' lacks fake_quantizer"),
        ("./my_quantizer.py:Quantizr", PluginError,
         "quantizer './my_quantizer.py:Quantizr' cannot be loaded: AttributeError: module 'my_quantizer' has no "
         "attribute 'Quantizr'; correct the file or the name"),
        ("./own_ranges.py:SCALE", PluginError,
         "quantizer './own_ranges.py:SCALE' is broken: 'own_ranges:SCALE' is no subclass of Quantizer"),
    ],
)  # fmt: skip
def test_a_path_that_leads_to_no_plugin_is_named(use: str, error: type[Exception], message: str, folder: Path) -> None:
    with pytest.raises(error) as caught:
        planned(folder, use)
    assert str(caught.value) == message.format(folder=str(folder))


def test_a_factory_is_named_by_the_path_of_its_file_and_its_code_is_in_the_key(folder: Path) -> None:
    Path("net_by_path.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)\n")

    def code() -> Any:
        recipe = {"name": "x", "workload": "digits", "student": {"factory": "net_by_path.py:make"}}
        made = make_plan(Recipe.model_validate(recipe), Site(home=folder), Catalog.load())
        return made.node("distill").parts["recipe"]["student"]

    before = code()
    assert before["factory"]["name"] == "net_by_path.py:make"
    Path("net_by_path.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 3)\n")
    assert code() != before


def test_a_file_in_a_package_is_a_part_of_the_package(folder: Path) -> None:
    (folder / "ownpack" / "inner").mkdir(parents=True)
    for part in ("ownpack", "ownpack/inner"):
        (folder / part / "__init__.py").touch()
    (folder / "ownpack" / "inner" / "nets.py").write_text("from . import __name__ as package\n")
    assert user_module("ownpack/inner/nets.py:net") == "ownpack.inner.nets"
    assert user_object("ownpack/inner/nets.py:package") == "ownpack.inner"


def test_a_file_with_the_name_of_another_module_is_refused(folder: Path) -> None:
    Path("json.py").write_text("x = 1\n")
    import json

    with pytest.raises(RecipeError) as caught:
        user_module("json.py:x")
    assert str(caught.value) == (
        f"'json.py' cannot be imported, since another module is called 'json' ({json.__file__}); give the file another "
        "name"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module_of_mine\n",
         "'own_code.py' cannot be imported: ModuleNotFoundError: No module named 'no_such_module_of_mine'; correct "
         "it, or install what it needs"),
        ("def make(): ...\n",
         "'own_code.py' has no 'mak'; did you mean 'make'? name a function or class that stands in it"),
    ],
)  # fmt: skip
def test_code_that_cannot_be_imported_is_told_with_its_reason(source: str, message: str, folder: Path) -> None:
    Path("own_code.py").write_text(source)
    with pytest.raises(RecipeError) as caught:
        user_object("own_code.py:mak")
    assert str(caught.value) == message


def test_what_a_file_prints_while_it_is_imported_goes_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prints_when_imported.py").write_text("print('hello')\nmake = 3\n")
    assert user_object(f"{tmp_path / 'prints_when_imported.py'}:make") == 3
    assert capsys.readouterr() == ("", "hello\n")
