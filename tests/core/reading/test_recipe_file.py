"""Reading a recipe: every mistake is one short text with file and line."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdq_core.errors import RecipeError
from kdq_core.reading.recipe_file import read_recipe, read_recipe_lines, recipe_from_text
from kdq_core.recipe.spec import Recipe, Use

SHORT = "name: x\nworkload: digits\n"


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe_from_text(text, "r.yaml")
    return str(caught.value)


def refusal_of(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    return str(caught.value)


def test_a_short_recipe_is_the_model_with_its_defaults() -> None:
    assert recipe_from_text(SHORT) == Recipe(name="x", workload=Use(use="digits"))


def test_a_bare_name_and_a_mapping_mean_the_same_plugin() -> None:
    assert recipe_from_text(SHORT) == recipe_from_text("name: x\nworkload: {use: digits, options: {}}\n")


def test_numbers_are_those_of_yaml_1_2() -> None:
    recipe = recipe_from_text(SHORT + "teacher: {fit: {learning_rate: 2e-3}}\nseed: 010\n")
    assert recipe.teacher.fit.learning_rate == 0.002
    assert recipe.seed == 10


def test_no_and_dates_and_times_are_text() -> None:
    options = recipe_from_text(
        "name: x\nworkload: {use: d, options: {a: no, b: 2020-01-01, c: 1:30}}\n"
    ).workload.options
    assert options == {"a": "no", "b": "2020-01-01", "c": "1:30"}


def test_an_alias_repeats_a_section() -> None:
    recipe = recipe_from_text(SHORT + "teacher: {fit: &fit {epochs: 7}}\ndistill: {fit: *fit}\n")
    assert recipe.distill.fit.epochs == recipe.teacher.fit.epochs == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe 'r.yaml' is empty; it needs at least 'name' and 'workload'"),
        ("# only a comment\n", "recipe 'r.yaml' is empty; it needs at least 'name' and 'workload'"),
        ("digits", "recipe 'r.yaml' is 'digits', not a mapping; it needs at least 'name' and 'workload'"),
        ("- a\n", "recipe 'r.yaml' is a list, not a mapping; write its keys without '- ', at least 'name' and "
         "'workload'"),
        ("b: 1\na: \x07", "r.yaml:2: the character '\\x07' is not allowed in YAML; delete it"),
        ('a: "\\U99999999"', "r.yaml:1: an escape in double quotes names no character; write the character itself"),
        ('a: "\\U00110000"', "r.yaml:1: an escape in double quotes names no character; write the character itself"),
        ('a: "\\ud800"', "r.yaml:1: an escape in double quotes names no character; write the character itself"),
        ("name: x\nname: y",
         "r.yaml:2: the key 'name' stands here a second time; the first is in line 1; delete one"),
        ("a: !!python/name:os.x 1", "r.yaml:1: the tag 'tag:yaml.org,2002:python/name:os.x' is not allowed; "
         "a file holds plain values"),
        ("a: &a {}\nb: {<<: *a}", "r.yaml:2: merge keys ('<<') are not supported; write the values out"),
        ("1: x", "r.yaml:1: the key 1 is not text; put it in quotes"),
        ("? [a]\n: 1", "r.yaml:1: a key must be text, not a list or mapping"),
        ("a: .inf", "r.yaml:1: '.inf' is not a finite number"),
        ("a: 1e999", "r.yaml:1: '1e999' is not a finite number"),
        ("a: *b", "r.yaml:1: alias '*b' refers to nothing before it; put text that begins with '*' in quotes"),
        ("a: &a [*a]", "r.yaml:1: alias '*a' refers to nothing before it; put text that begins with '*' in quotes"),
        ("--- {}\n--- {}",
         "r.yaml:2: a second document starts here; a file holds one, so write this into a file of its own"),
        ("a: " + "[" * 40, "r.yaml:1: nested deeper than 32 levels"),
        ("a: [" + "1," * 10_001 + "]", "r.yaml:1: more than 10000 values or 1000000 characters, aliases written out"),
    ],
)  # fmt: skip
def test_text_that_is_no_strict_yaml_is_refused_with_its_line(text: str, message: str) -> None:
    assert refusal(text) == message


def test_a_yaml_bomb_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 6)]
    assert refusal("\n".join(lines)) == "r.yaml:4: more than 10000 values or 1000000 characters, aliases written out"


def test_a_bomb_of_one_long_text_is_refused_too() -> None:
    text = f"a: &a {'x' * 200_000}\nb: [{', '.join(['*a'] * 9)}]"
    assert refusal(text) == "r.yaml:2: more than 10000 values or 1000000 characters, aliases written out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workload: digits", "r.yaml: key 'name' is missing; it must be text, "
         "matching ^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"),
        (SHORT + "distil: {}", "r.yaml:3: unknown key 'distil'; did you mean 'distill'? allowed: budget, distill, "
         "evaluate, gates, kdq, name, quantize, register, retry, seed, stages, student, target, teacher, workload"),
        (SHORT + "retry:\n  attemps: 3", "r.yaml:4: unknown key 'attemps' in 'retry'; did you mean 'attempts'? "
         "allowed: attempts, backoff_seconds, checkpoint_seconds, "
         "checkpoint_steps, stage_timeout_seconds, stall_seconds"),
        (SHORT + "retry:\n  zzz: 3", "r.yaml:4: unknown key 'zzz' in 'retry'; "
         "allowed: attempts, backoff_seconds, checkpoint_seconds, checkpoint_steps, "
         "stage_timeout_seconds, stall_seconds"),
        (SHORT + "teacher:\n  fit:\n    epochs: 0",
         "r.yaml:5: key 'teacher.fit.epochs' is 0; allowed: a whole number, 1 to 10000"),
        (SHORT + "teacher: {fit: {epochs: '3'}}",
         "r.yaml:3: key 'teacher.fit.epochs' is '3'; allowed: a whole number, 1 to 10000"),
        (SHORT + "teacher: {fit: {epochs: true}}",
         "r.yaml:3: key 'teacher.fit.epochs' is True; allowed: a whole number, 1 to 10000"),
        (SHORT + "teacher: {fit: {warmup: 1}}",
         "r.yaml:3: key 'teacher.fit.warmup' is 1; allowed: a number, at least 0 and below 1"),
        (SHORT + "teacher: {fit: {optimizer: adam}}",
         "r.yaml:3: key 'teacher.fit.optimizer' is 'adam'; did you mean 'adamw'? allowed: 'adamw' or 'sgd'"),
        (SHORT + "distill:\n  transfer:\n    layer: auto",
         "r.yaml:5: unknown key 'layer' in 'distill.transfer'; did you mean 'layers'? allowed: hold, layers, rounds"),
        (SHORT + "distill: {transfer: {round: 3}}",
         "r.yaml:3: unknown key 'round' in 'distill.transfer'; did you mean 'rounds'? allowed: hold, layers, rounds"),
        (SHORT + "teacher: {members: [{normalize: {mean: [0.1], std: [1.0], sdt: [1.0]}}]}",
         "r.yaml:3: unknown key 'sdt' in 'teacher.members[0].normalize'; did you mean 'std'? allowed: mean, std"),
        (SHORT + "teacher: {fit: {clip_norm: -1}}",
         "r.yaml:3: key 'teacher.fit.clip_norm' is -1; allowed: a number or null, above 0"),
        (SHORT + "teacher: 3", "r.yaml:3: key 'teacher' is 3; allowed: a mapping"),
        ("name: x\nworkload: [digits]",
         "r.yaml:2: key 'workload' is ['digits']; allowed: a plug-in's name, or a mapping with its name as 'use'"),
        (SHORT + "distill: {losses: [dkd, 3]}", "r.yaml:3: key 'distill.losses[1]' is 3; "
         "allowed: a plug-in's name, or a mapping with its name as 'use'"),
        (SHORT + "distill:\n  losses: 3", "r.yaml:4: key 'distill.losses' is 3; allowed: a list"),
        (SHORT + "evaluate: [[size]]", "r.yaml:3: key 'evaluate[0]' is ['size']; "
         "allowed: a plug-in's name, or a mapping with its name as 'use'"),
        (SHORT + "teacher: {members: [{normalize: 3}]}",
         "r.yaml:3: key 'teacher.members[0].normalize' is 3; allowed: a mapping or null"),
        (SHORT + "kdq: 2", "r.yaml:3: key 'kdq' is 2; allowed: 1"),
        (SHORT + "evaluate: []", "r.yaml:3: key 'evaluate' is []; allowed: a list, at least 1 long"),
        (SHORT + "evaluate: [size, size]", "r.yaml:3: key 'evaluate': evaluator 'size' is listed twice"),
        (SHORT + "gates:\n- {metric: top1, at_least: 1}\n- {metric: top1}",
         "r.yaml:5: key 'gates[1]': a gate has exactly one of 'at_least' and 'at_most'"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_named_with_line_and_what_is_allowed(text: str, message: str) -> None:
    assert refusal(text) == message


def test_several_problems_come_as_a_list_in_the_order_of_the_file() -> None:
    assert refusal(SHORT + "seed: -1\nkdq: x\nretry: {attempts: 0}").splitlines() == [
        "recipe 'r.yaml' has 3 problems:",
        "r.yaml:3: key 'seed' is -1; allowed: a whole number, 0 to 2147483647",
        "r.yaml:4: key 'kdq' is 'x'; allowed: 1",
        "r.yaml:5: key 'retry.attempts' is 0; allowed: a whole number, 1 to 20",
    ]


def test_of_many_problems_ten_are_shown() -> None:
    lines = refusal(SHORT + "\n".join(f"unknown{n}: 1" for n in range(13))).splitlines()
    assert len(lines) == 12
    assert lines[0] == "recipe 'r.yaml' has 13 problems:"
    assert lines[-1] == "and 3 more"


def test_a_missing_file_is_named_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal_of(Path("nothing.yaml")) == "no recipe file 'nothing.yaml'; check the path"


def test_a_folder_is_refused_with_a_file_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some").mkdir()
    assert refusal_of(Path("some")) == "'some' is a folder; name a recipe file; it holds no *.yaml"
    (tmp_path / "some" / "b.yaml").touch()
    assert refusal_of(Path("some")) == "'some' is a folder; name a recipe file, such as 'some/b.yaml'"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "recipe 'r.yaml' is empty; it needs at least 'name' and 'workload'"),
        (b"PK\x03\x04\xff", "recipe 'r.yaml' is not a text file: byte 4 is no UTF-8; a recipe is a YAML file"),
        (b"name: \0", "recipe 'r.yaml' is not a text file: byte 6 is zero; a recipe is a YAML file"),
        (SHORT.encode("utf-16"), "recipe 'r.yaml' is in UTF-16; save it as UTF-8"),
        (b"#" * 10_000_000, "recipe 'r.yaml' is larger than 1 MB; a recipe holds options, not data"),
    ],
    ids=["empty", "not UTF-8", "zero byte", "UTF-16", "10 MB"],
)
def test_a_file_that_is_no_recipe_is_refused(
    data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_bytes(data)
    assert refusal_of(Path("r.yaml")) == message


def test_a_path_that_cannot_exist_is_refused() -> None:
    assert refusal_of(Path("x" * 5000)) == f"recipe '{'x' * 56}... cannot be read: file name too long"
    assert refusal_of(Path("a\0b")) == "recipe 'a\\x00b' cannot be read: embedded null byte"


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + SHORT.encode())
    assert read_recipe(tmp_path / "r.yaml").name == "x"


def test_the_document_knows_the_line_of_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("name: x\nworkload:\n  use: digits\n  options:\n    a: 1\nevaluate:\n- size\n- latency\n")
    _, document = read_recipe_lines(Path("r.yaml"))
    assert document.where(("workload", "options", "a")) == "r.yaml:5"
    assert document.where(("workload", "options", "b")) == "r.yaml:4"
    assert document.where(("evaluate", 1, "use")) == "r.yaml:8"
    assert document.where(("target", "use")) == "r.yaml"


@given(st.text())
def test_no_text_raises_anything_but_a_recipe_error(text: str) -> None:
    with contextlib.suppress(RecipeError):
        recipe_from_text(text, "r.yaml")


YAML = st.text(alphabet="ab01 :-[]{},&*!?|>'\"\\#%@`~<=.\n\t\ruUxe+\u2028\x85", max_size=60)


@given(YAML)
def test_no_text_of_yaml_signs_raises_anything_but_a_recipe_error(text: str) -> None:
    with contextlib.suppress(RecipeError):
        recipe_from_text(SHORT + text, "r.yaml")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = st.sampled_from([*Recipe.model_json_schema()["properties"], "fit", "use"])


@given(st.dictionaries(SECTIONS, JSON | st.dictionaries(SECTIONS, JSON, max_size=3), max_size=4))
def test_no_values_raise_anything_but_a_recipe_error(value: dict[str, object]) -> None:
    with contextlib.suppress(RecipeError):
        recipe_from_text(yaml.safe_dump(value, allow_unicode=True), "r.yaml")


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, SHORT.encode())
    os.close(write)
    try:
        assert read_recipe(Path(f"/dev/fd/{read}")).name == "x"
    finally:
        os.close(read)
