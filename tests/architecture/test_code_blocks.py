"""Every block of code in the documents: shell lines parse, Python compiles and its imports resolve, examples run."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from kdq_flows.cli import app
from tests.architecture.pages import BLOCK, PAGES, ROOT, blocks, name_of, titled

PROGRAMS = {"export", "kdq", "make", "mlflow", "openssl", "pip", "python", "python3", "."}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def shell_lines(text: str) -> Iterator[list[str]]:
    """The words of each command of a block: without comments, variables before it, and what a pipe does with it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        found: list[str] = []
        for before, word in pairwise([";", *words, ";"]):
            if before == ">":
                continue
            if set(word) <= set("|&;>"):
                while found and re.fullmatch(r"[A-Z_]+=.*", found[0]):
                    found.pop(0)
                if found:
                    yield [found[0].removeprefix(".venv/bin/"), *found[1:]]
                found = []
            else:
                found.append(word)


SHELL = [
    pytest.param(page, words, id=f"{name_of(page)}: {' '.join(words)}")
    for page in PAGES
    for block in blocks(page, "sh")
    for words in shell_lines(block)
]
PYTHON = [
    pytest.param(page, text, id=f"{name_of(page)}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "python"))
]


def parsed(words: list[str]) -> str:
    """The command that the words call; the command line's own parser reads all of them, and nothing runs."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("kdq", list(words))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return str(context.command_path)


@pytest.mark.parametrize(("page", "words"), SHELL)
def test_a_shell_line_of_the_documents_names_what_is_there(page: Path, words: list[str]) -> None:
    program, *rest = words
    assert program in PROGRAMS
    if program == "kdq":
        assert parsed(rest).startswith("kdq ")
    elif program == "make":
        assert {word for word in rest if "=" not in word} <= TARGETS
    elif program in ("python", "python3") and rest[0].endswith(".py"):
        assert rest[0] in titled(page, "example") or (ROOT / rest[0]).is_file()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run", "Missing argument 'FILE'."),
        ("run a.yaml --no-servers", "No such option: --no-servers"),
        ("quantise a.py:net", "No such command 'quantise'."),
        ("plugins lst", "No such command 'lst'."),
        ("promote digits one", "Invalid value for 'VERSION'"),
    ],
)
def test_a_wrong_shell_line_is_found(line: str, message: str) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        parsed(shlex.split(line))
    assert message in str(getattr(caught.value, "format_message", lambda: caught.value)())


def test_pipes_variables_and_comments_are_no_words_of_a_command() -> None:
    text = "A_B=1 .venv/bin/kdq run 'a b.yaml' --json | tail -n 1 > x # last\n# a comment\nmake demo && kdq \\\n  up\n"
    found = [["kdq", "run", "a b.yaml", "--json"], ["tail", "-n", "1"], ["make", "demo"], ["kdq", "up"]]
    assert list(shell_lines(text)) == found


@pytest.mark.parametrize(("page", "text"), PYTHON)
def test_a_python_block_compiles_and_its_imports_resolve(page: Path, text: str) -> None:
    shown = {Path(name).stem for kind in ("example", "file") for name in titled(page, kind)}
    packages = {part for name in titled(page, "example") | titled(page, "file") for part in Path(name).parts}
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        module = node.module if isinstance(node, ast.ImportFrom) else None
        if not names or (module or names[0]).split(".")[0] in shown | packages:
            continue
        for name in names:
            found = importlib.import_module(module or name)
            assert module is None or hasattr(found, name) or importlib.import_module(f"{module}.{name}"), name


def test_every_block_of_code_in_the_documents_has_a_language_that_is_checked() -> None:
    pages = [page for page in PAGES if page.parent.name == "docs"]
    languages = {lang for page in pages for _, _, lang, _ in BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert languages <= {"", "sh", "python", "yaml", "toml"}


def written_out(page: Path, folder: Path) -> None:
    """Write the examples of a page, as a reader would."""
    for name, text in titled(page, "example").items():
        (folder / name).write_text(text, encoding="utf-8")


def typed(words: list[str], folder: Path) -> str:
    """Run a line of a page in the folder of its examples; gives stdout."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KDQ_HOME": str(folder / "home"), "KDQ_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_about_quantizing_and_the_python_examples_do_what_they_say(tmp_path: Path) -> None:
    page = ROOT / "docs" / "quantize.md"
    written_out(page, tmp_path)
    before = titled(page, "example")["in_python.py"].partition("result = ")[0]
    given = (
        "calibration, test = (data['x_train'], data['y_train']), (data['x_test'], data['y_test'])\nx = data['x_test']\n"
    )
    for number, file in enumerate(("README.md", "docs/your-model.md")):
        [text] = [block for block in blocks(ROOT / file, "python") if "kdq.quantize" in block]
        (tmp_path / f"read_{number}.py").write_text(before + given + text, encoding="utf-8")
    examples = [["python", "in_python.py"], ["python", "read_0.py"], ["python", "read_1.py"], ["python", "use.py"]]
    lines = [line for block in blocks(page, "sh") for line in shell_lines(block)]
    for words in [*lines, *examples]:
        typed(words, tmp_path)
    files = {"int8.onnx", "report.html", "report.md", "result.json"}
    assert {path.name for path in (tmp_path / "my_model-int8").iterdir()} == files


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_text_example_makes_a_file_that_takes_sentences_of_every_length(tmp_path: Path) -> None:
    page = ROOT / "docs" / "your-model.md"
    written_out(page, tmp_path)
    lines = [line for block in blocks(page, "sh") for line in shell_lines(block) if "my_text.py" in " ".join(line)]
    for words in [*lines, ["python", "use_text.py"]]:
        told = typed(words, tmp_path)
        if words[0] == "kdq":
            assert "takes tokens int64 [batch, any], mask float32 [batch, any]" in " ".join(told.split())
    assert [line.split()[0] for line in told.splitlines()[1:]] == ["3", "7"]
    assert json.loads((tmp_path / "my_text-int8" / "result.json").read_text())["models"]["int8"]["top1"] > 0.8


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_about_branches_does_what_it_says(tmp_path: Path) -> None:
    page = ROOT / "docs" / "matrix.md"
    written_out(page, tmp_path)
    told = [typed(words, tmp_path) for block in blocks(page, "sh") for words in shell_lines(block)]
    result, plan = json.loads(told[-2].splitlines()[-1]), json.loads(told[-1])
    assert list(result["branches"][0]) == [
        "branch", "axes", "models", "gains", "gates", "artifact", "version", "status", "error", "run",
    ]  # fmt: skip
    assert list(result["selected"]) == ["branch", "pareto", "verdict"]
    assert len(next(row["branches"] for row in plan if row["stage"] == "distill")) == 4
