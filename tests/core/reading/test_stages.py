"""Wrong lists of stages, and gates about models that are not there: refused with file, line and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdq_core.api import Checkpoint, Field, Port, Reads, Record, Stage
from kdq_core.errors import KdqError, PluginError, RecipeError
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.checks import check_recipe, load_recipe
from kdq_core.reading.recipe_file import document_from_text, recipe_from_document
from kdq_core.recipe.spec import Recipe
from kdq_core.store.records import EvaluationReport

HEAD = "name: x\nworkload: digits\n"
NAMES = (
    "cache_teacher, distill, evaluate, export, odd, place, prune, quantize, read_student, register, report, "
    "train_teacher"
)
NOBODY = "which no stage before it gives;"


class Toy(Stage):
    gives = "student"
    record = Checkpoint

    def reads(self, asked: Any, wired: Any) -> Reads:
        return Reads()

    def run(self, work: Any) -> Record:
        raise NotImplementedError


class Prune(Toy):
    """A guest with an option."""

    share: float = Field(default=0.5, gt=0, lt=1, description="of the channels")


class Report(Toy):
    """Gives a record of another type than stages after it expect in its slot."""

    record = EvaluationReport


class Odd(Toy):
    """Reads a slot that no installed stage gives."""

    gives = "other"

    def inputs(self, asked: Any) -> dict[str, Port]:
        return {"lexicon": Port(slot="lexicon")}


@pytest.fixture(scope="module")
def catalog(with_stages: Any) -> Catalog:
    found: Catalog = with_stages(Catalog.load(), prune=Prune, report=Report, odd=Odd)
    return found


def check(text: str, catalog: Catalog) -> Recipe:
    lines = document_from_text(HEAD + text, "r.yaml")
    recipe = recipe_from_document(lines, catalog)
    check_recipe(recipe, catalog, lines)
    return recipe


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            "stages: [quantize]",
            RecipeError,
            f"r.yaml:3: stage 'quantize' reads the slot 'student', {NOBODY} list 'distill' or 'prune' or 'report', "
            "which gives it, before 'quantize', or name a trained student: student: {source: checkpoint, file: ...}",
        ),
        (
            "stages:\n  - train_teacher\n  - distill\n  - export\n  - quantize\n",
            RecipeError,
            f"r.yaml:6: stage 'export' reads the slot 'quantized', {NOBODY} 'quantize' gives it, but comes later: "
            "list it before 'export'",
        ),
        (
            "stages:\n  - train_teacher\n  - distill\n  - register\n",
            RecipeError,
            f"r.yaml:6: stage 'register' reads the slot 'artifact', {NOBODY} list 'export', which gives it, "
            "before 'register'",
        ),
        (
            "stages: [odd]",
            RecipeError,
            f"r.yaml:3: stage 'odd' reads the slot 'lexicon', {NOBODY} no installed stage gives it",
        ),
        (
            "stages:\n  - report\n  - {use: quantize, name: q}\n",
            RecipeError,
            "r.yaml:5: stage 'q' reads a 'checkpoint' from the slot 'student', but stage 'report' gives a "
            "'report' there; put another stage before it, or change their order",
        ),
        (
            "stages: [train_teacher, quantise]",
            PluginError,
            f"r.yaml:3: no stage named 'quantise'; did you mean 'quantize'? Installed: {NAMES}.",
        ),
        (
            "stages: [train_teacher, distill, distill]",
            RecipeError,
            "r.yaml:3: key 'stages': stage 'distill' is listed twice; give the second a 'name' of its own",
        ),
        ("stages: []", RecipeError, "r.yaml:3: key 'stages' is []; allowed: a list, at least 1 long"),
        ("stages: quantize", RecipeError, "r.yaml:3: key 'stages' is 'quantize'; allowed: a list, at least 1 long"),
        (
            "stages:\n  - train_teacher\n  - 3\n",
            RecipeError,
            "r.yaml:5: key 'stages[1]' is 3; allowed: a plug-in's name, or a mapping with its name as 'use'",
        ),
        ("stages: [{name: x}]", RecipeError, "r.yaml:3: key 'stages[0].use' is missing; it must be text"),
        (
            "stages:\n  - use: train_teacher\n    options: {epochs: 3}\n",
            RecipeError,
            "r.yaml:5: unknown option 'epochs' of stage 'train_teacher'; allowed: none",
        ),
        (
            "stages:\n  - train_teacher\n  - use: distill\n    options: {fit: {epochs: 3}}\n",
            RecipeError,
            "r.yaml:6: stage 'distill' has no options; its settings stand in the section 'distill' of the recipe",
        ),
        (
            "stages: [{use: prune, options: {share: 2}}]",
            RecipeError,
            "r.yaml:3: option 'share' of stage 'prune' is 2; allowed: a number, above 0 and below 1",
        ),
        (
            "stages: [prune]\nprune: {share: 2}",
            RecipeError,
            "r.yaml:4: option 'share' of stage 'prune' is 2; allowed: a number, above 0 and below 1",
        ),
        (
            "stages:\n  - {use: prune, options: {share: 0.4}}\nprune: {share: 0.2}",
            RecipeError,
            "r.yaml:3: stage 'prune' has 'options' in 'stages' and a section 'prune'; keep one of the two",
        ),
        (
            "prune: {share: 0.2}",
            RecipeError,
            "r.yaml:3: section 'prune' holds the options of a stage that 'stages' does not list; list 'prune' there",
        ),
        (
            "stages: [train_teacher, {use: prune, name: thin}]\nprune: {share: 0.2}",
            RecipeError,
            "r.yaml:4: section 'prune' holds the options of a stage that 'stages' calls 'thin'; call the section "
            "'thin', too",
        ),
        (
            "stages: [train_teacher]\npruen: {share: 0.2}",
            RecipeError,
            "r.yaml:4: unknown key 'pruen'; did you mean 'prune'?",
        ),
        (
            "stages: [read_student, quantize]",
            RecipeError,
            "r.yaml:3: stage 'read_student' reads the file of a trained student, but the recipe names none; write "
            "student: {source: checkpoint, file: ...}",
        ),
        (
            "teacher: {cache: {enabled: false}}\nstages: [train_teacher, cache_teacher, needy]",
            RecipeError,
            f"r.yaml:4: stage 'needy' reads the slot 'outputs', {NOBODY} 'cache_teacher' would give it, but the recipe "
            "has no work for it",
        ),
        (
            "student: net.safetensors",
            RecipeError,
            "r.yaml:3: key 'student' is 'net.safetensors'; write student: {source: checkpoint, file: net.safetensors}",
        ),
        ("quantize: static", RecipeError, "r.yaml:3: key 'quantize' is 'static'; write quantize: {use: static}"),
        ("distill: dkd", RecipeError, "r.yaml:3: key 'distill' is 'dkd'; write distill: {use: dkd}"),
    ],
)
def test_a_wrong_list_is_refused_with_its_line_and_what_is_missing(
    text: str, kind: type[KdqError], message: str, catalog: Catalog, with_stages: Any
) -> None:
    class Needy(Toy):
        def inputs(self, asked: Any) -> dict[str, Port]:
            return {"outputs": Port(slot="outputs")}

    if "needy" in text:
        catalog = with_stages(Catalog.load(), needy=Needy)
    with pytest.raises(kind) as caught:
        check(text, catalog)
    assert type(caught.value) is kind
    assert str(caught.value) == message


GIVEN = "student: {source: checkpoint, file: net.safetensors}\nstages: [quantize, export, evaluate]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "gates:\n  - {metric: top1, at_least: 0.9}\n  - {metric: top1, of: int4, at_least: 0.9}\n",
            "r.yaml:5: a gate on 'top1' names the model 'int4', but the recipe's stages give: int8, student, teacher; "
            "did you mean 'int8'?",
        ),
        (
            GIVEN + "gates:\n  - metric: top1\n    at_least: 0.9\n    relative_to: teacher\n",
            "r.yaml:8: a gate on 'top1' names the model 'teacher', but the recipe's stages give: int8, student",
        ),
        (
            "stages: [train_teacher]\ngates: [{metric: top1, at_least: 0.9}]\n",
            "r.yaml:4: a gate on 'top1' names the model 'int8', but the recipe's stages give: none",
        ),
    ],
)
def test_a_gate_about_a_model_that_no_stage_gives_is_refused_with_its_line(
    text: str, message: str, catalog: Catalog
) -> None:
    with pytest.raises(RecipeError) as caught:
        check(text, catalog)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text",
    [
        "stages: [{use: prune, name: thin}, quantize]\nthin: {share: 0.2}",
        "stages: [train_teacher, distill, {use: distill, name: again}, quantize]",
        "stages: [kdq/train_teacher, kdq/distill]",
        GIVEN,
    ],
)
def test_a_list_that_fits_together_is_let_through(text: str, catalog: Catalog) -> None:
    check(text, catalog)


def test_a_students_file_and_factory_are_looked_for_where_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    student = "student:\n  source: checkpoint\n  file: net.safetensors\n  factory: no_such_module_of_mine:make\n"
    Path("r.yaml").write_text(HEAD + student)
    load_recipe(Path("r.yaml"))

    def refused() -> str:
        with pytest.raises(RecipeError) as caught:
            load_recipe(Path("r.yaml"), files=True)
        return str(caught.value)

    assert refused() == (
        f"r.yaml:5: the student's file 'net.safetensors' is not there, seen from {str(tmp_path)!r}; correct 'file' in "
        "'student', or give its whole path"
    )
    Path("net.safetensors").mkdir()
    assert refused() == (
        "r.yaml:5: the student's file 'net.safetensors' is a folder; name the file in it as 'file' in 'student'"
    )
    Path("net.safetensors").rmdir()
    Path("net.safetensors").touch()
    assert refused() == (
        "r.yaml:6: the student's factory is in 'no_such_module_of_mine', and there is no such module; install its "
        "package, put its folder on PYTHONPATH, or correct 'factory' in 'student' (the folder kdq runs in is not "
        "searched)"
    )
