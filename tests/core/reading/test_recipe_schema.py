"""The schema for editors says what the recipe reader says."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from kdq_core.errors import KdqError
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.checks import check_recipe
from kdq_core.reading.recipe_file import document_from_text, recipe_from_document
from kdq_core.reading.schema import recipe_schema
from kdq_core.reading.studies import read_study
from kdq_core.recipe.study import FIELDS

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
HOUSE = [RECIPES / "digits.yaml", RECIPES / "digits-matrix.yaml"]
EXAMPLES = sorted(set(RECIPES.glob("*.yaml")) - set(HOUSE))
SHORT = "name: x\nworkload: digits\n"


@pytest.fixture(scope="module")
def house() -> Catalog:
    return Catalog.load(importlib.metadata.distribution("kdq").entry_points.select(group="kdq"))


def verdicts(text: str, catalog: Catalog) -> tuple[bool, bool]:
    """Whether the schema and the reader take a recipe."""
    schema_takes = jsonschema.Draft7Validator(recipe_schema(catalog)).is_valid(yaml.safe_load(text))
    try:
        document = document_from_text(text, "r.yaml")
        if FIELDS & document.value.keys():
            read_study(document, catalog)
        else:
            check_recipe(recipe_from_document(document), catalog)
    except KdqError:
        return schema_takes, False
    return schema_takes, True


def test_the_schema_is_a_schema(house: Catalog) -> None:
    jsonschema.Draft7Validator.check_schema(recipe_schema(house))


def test_the_committed_schema_is_that_of_the_house_plugins(house: Catalog) -> None:
    committed = json.loads((RECIPES / "recipe.schema.json").read_text(encoding="utf-8"))
    assert committed == recipe_schema(house), "run: kdq schema --output recipes/recipe.schema.json"


@pytest.mark.parametrize("path", HOUSE, ids=lambda path: path.name)
def test_every_recipe_of_the_house_is_valid_and_names_the_schema(path: Path, house: Catalog) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert verdicts(text, house) == (True, True)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_recipe_of_the_examples_is_valid_where_they_are_installed_and_says_so(
    path: Path, house: Catalog, with_examples: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = path.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"file: ([\w.-]+)", text):
        (tmp_path / name).touch()  # the recipe's comment says how to write it
        assert f" {name}\n" in text.partition("\nname: ")[0] + "\n"
    comment, _, fields = text.partition("\nname: ")
    assert re.fullmatch(r"(# .+\n?)+", comment)
    assert "pip install ./examples" in comment
    assert fields.startswith(f"{path.stem}\n")
    assert verdicts(text, with_examples) == (True, True)
    assert verdicts(text, house) == (False, False)


@pytest.mark.parametrize(
    "text",
    [
        SHORT,
        "name: x\nworkload: {use: digits}",
        SHORT + "distill: {options: {temperature: 2}}",
        SHORT + "distill: {use: logit-kd, options: {temperature: 2}}",
        SHORT + "evaluate: [size, {use: quality}]",
        SHORT + "teacher: {fit: {clip_norm: null}}",
        SHORT + "matrix: {over: {seed: [0, 1], quantize.use: [lsq]}}",
        SHORT + "matrix: {include: [{seed: 3}]}\nselect: {minimise: [bytes]}\nlimits: {time: 4h}",
        SHORT + "search: {space: {seed: {low: 0, high: 9}}}\nselect: {minimise: [bytes]}\nlimits: {trials: 3}",
        SHORT + "search: {space: {seed: [0, 1]}, sampler: grid}\nselect: {minimise: [bytes]}",
    ],
)
def test_schema_and_reader_take_the_same(text: str, house: Catalog) -> None:
    assert verdicts(text, house) == (True, True)


@pytest.mark.parametrize(
    "text",
    [
        "name: x",
        "name: x\nworkload: nothing",
        "name: x\nworkload: {}",
        "name: x\nworkload: {use: digits, option: {}}",
        SHORT + "workloads: 3",
        SHORT + "distill: {use: nothing}",
        SHORT + "distill: {options: {temperature: -1}}",
        SHORT + "distill: {use: logit-kd, options: {temprature: 1}}",
        SHORT + "evaluate: [size, {use: quality, options: {no: 1}}]",
        SHORT + "evaluate: []",
        SHORT + "target: logit-kd",
        SHORT + "teacher: {fit: {epochs: 0}}",
        SHORT + "seed: '1'",
        SHORT + "matrix: {over: {seed: []}}",
        SHORT + "matrix: {over: 3}",
        SHORT + "matirx: {over: {seed: [0]}}",
        SHORT + "select: {minimise: [bytes]}",
        SHORT + "limits: {trials: 3}",
        SHORT + "search: {space: {seed: [0]}, sampler: grid}",
        SHORT + "search: {space: {seed: [0]}, sampler: grid}\nselect: {minimise: [bytes]}\nmatrix: {over: {seed: [0]}}",
        SHORT + "search: {space: {seed: {low: 0}}}\nselect: {minimise: [bytes]}\nlimits: {trials: 3}",
        SHORT + "matrix: {over: {seed: [0]}}\nselect: {minimize: [bytes]}",
        SHORT + "matrix: {over: {seed: [0]}}\nlimits: {trials: 0}",
    ],
)
def test_schema_and_reader_refuse_the_same(text: str, house: Catalog) -> None:
    assert verdicts(text, house) == (False, False)


def test_a_plugin_that_cannot_be_imported_is_left_without_options(house: Catalog) -> None:
    broken = Catalog(house.plugins, ())
    broken.entries = tuple(
        entry.model_copy(update={"target": "a_module_nobody_has:X"}) if entry.name == "logit-kd" else entry
        for entry in house.entries
    )
    distill = recipe_schema(broken)["$defs"]["DistillSpec"]
    described = [one["if"]["properties"]["use"]["const"] for one in distill["allOf"]]
    assert sorted([*described, "logit-kd"]) == distill["properties"]["use"]["enum"]
