"""What a recipe asks of its teachers that they cannot give is told before anything runs."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdq_core.errors import RecipeError
from kdq_core.plan.plan import make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.checks import check_recipe, load_recipe
from kdq_core.reading.given import given_file
from kdq_core.reading.recipe_file import document_from_text, recipe_from_document
from kdq_core.recipe.spec import Site

CATALOG = Catalog.load()
HEAD = "name: x\nworkload: digits\n"
ONNX = "teacher: {members: [{source: onnx, file: t.onnx}, {source: registered, model: a/1}]}\n"
MIXED = "teacher: {members: [{source: onnx, file: t.onnx}, {source: student}]}\n"


def check(text: str) -> None:
    document = document_from_text(HEAD + text, "r.yaml")
    check_recipe(recipe_from_document(document), CATALOG, document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill:\n  use: fitnet\n" + ONNX, "r.yaml:4: distiller 'fitnet' compares features of modules, but an ONNX "
         "model has no modules to compare with; use a distiller of outputs, such as 'logit-kd', or a teacher from a "
         "checkpoint"),
        ("distill:\n  losses:\n    - dkd\n    - {use: crd, taps: [[a, b]]}\n" + ONNX, "r.yaml:6: distiller 'crd' "
         "compares features of modules, but an ONNX model has no modules to compare with; use a distiller of outputs, "
         "such as 'logit-kd', or a teacher from a checkpoint"),
        ("distill:\n  transfer: {}\n" + ONNX, "r.yaml:4: 'distill.transfer' starts the student from the teacher's "
         "layers, but an ONNX model has none that could be read; leave it out, or use a teacher from a checkpoint"),
        ("distill:\n  fuse_views: true\nteacher: {cache: {enabled: false}}\n", "r.yaml:4: 'distill.fuse_views' takes "
         "the mean over what is kept of the teacher, but nothing is kept; write teacher: {cache: {enabled: true}}, or "
         "leave it out"),
        ("distill:\n  use: rkd\n  fuse_views: true\n", "r.yaml:5: 'distill.fuse_views' takes the mean over what is "
         "kept of the teacher, but nothing is kept; write teacher: {cache: {features: true}}, or leave it out"),
    ],
)  # fmt: skip
def test_a_recipe_that_asks_for_the_impossible_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text",
    [
        "distill: {use: dkd}\n" + ONNX,
        "distill: {losses: [{use: fitnet, taps: [[blocks.0, members.1.blocks.0]]}]}\n" + MIXED,
        "distill: {transfer: {layers: [[head, members.1.head]]}}\n" + MIXED,
        "distill: {fuse_views: true}\n",
        "distill: {use: rkd, fuse_views: true}\nteacher: {cache: {features: true}}\n",
    ],
)
def test_what_is_possible_is_let_through(text: str) -> None:
    check(text)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a checkpoint and a factory, in the folder the test runs in."""
    monkeypatch.chdir(tmp_path)
    member = '{source: checkpoint, file: t.safetensors, factory: "no_such_module_of_mine.inside:make"}'
    members = f"    - {{source: pipeline}}\n    - {member}\n"
    (tmp_path / "r.yaml").write_text(f"{HEAD}teacher:\n  members:\n{members}")
    return Path("r.yaml")


def test_files_and_factories_are_looked_for_where_it_is_asked(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_recipe(recipe)
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, files=True)
    assert str(caught.value) == (
        f"r.yaml:6: the teacher's file 't.safetensors' is not there, seen from {str(tmp_path)!r}; correct 'file' in "
        "'teacher.members', or give its whole path"
    )
    Path("t.safetensors").mkdir()
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, files=True)
    assert str(caught.value) == (
        "r.yaml:6: the teacher's file 't.safetensors' is a folder; name the file in it as 'file' in 'teacher.members'"
    )
    Path("t.safetensors").rmdir()
    Path("t.safetensors").touch()
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, files=True)
    assert str(caught.value) == (
        "r.yaml:6: the teacher's factory is in 'no_such_module_of_mine.inside', and there is no such module; install "
        "its package, put its folder on PYTHONPATH, or correct 'factory' in 'teacher.members' (the folder kdq runs in "
        "is not searched)"
    )
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "no_such_module_of_mine.py").write_text("raise AssertionError('it was imported')")
    monkeypatch.syspath_prepend(tmp_path / "found")
    load_recipe(recipe, files=True)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("student: {source: checkpoint, file: net.pt}\n", "r.yaml:3: the student's file 'net.pt' was written by "
         "torch.save, and KDQ reads a safetensors file there; if it holds a state_dict, convert it with "
         "safetensors.torch.save_file(torch.load('net.pt'), 'net.safetensors'), else write model.state_dict() in that "
         "way where the model is"),
        ("teacher:\n  members: [{source: checkpoint, file: net.pt}]\n", "r.yaml:4: the teacher's file 'net.pt' was "
         "written by torch.save, and KDQ reads a safetensors file there; if it holds a state_dict, convert it with "
         "safetensors.torch.save_file(torch.load('net.pt'), 'net.safetensors'), else write model.state_dict() in that "
         "way where the model is"),
        ("teacher:\n  members: [{source: onnx, file: net.pt}]\n", "r.yaml:4: the teacher's file 'net.pt' was written "
         "by torch.save, and KDQ reads an ONNX file there; export the model with torch.onnx.export, or write source: "
         "checkpoint"),
    ],
)  # fmt: skip
def test_a_file_of_torch_save_is_refused_early_with_the_way_to_convert_it(
    text: str, message: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1)}, "net.pt", _use_new_zipfile_serialization=zipped)
    Path("r.yaml").write_text(HEAD + text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("r.yaml"), files=True)
    assert str(caught.value) == message
    with pytest.raises(RecipeError) as caught:
        make_plan(load_recipe(Path("r.yaml")), Site(home=tmp_path), CATALOG)
    assert str(caught.value) == message.partition(": ")[2]


def test_a_safetensors_file_may_begin_like_a_pickle(tmp_path: Path) -> None:
    file, weights = tmp_path / "net.safetensors", {"weight": torch.zeros(1)}
    begins = set()
    for length in range(0, 256, 8):
        save_file(weights, file, metadata={"pad": "x" * length})
        begins.add(file.read_bytes()[0])
        assert given_file(str(file), "student") == file
    assert 0x80 in begins


def test_a_file_that_cannot_be_read_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "net.pt").touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecipeError) as caught:
        given_file(str(tmp_path / "net.pt"), "student")
    assert str(caught.value) == (
        f"the student's file {str(tmp_path / 'net.pt')!r} cannot be read: permission denied; correct its permissions"
    )
