"""What the documents say is true: recipes validate, links lead somewhere, commands exist, examples run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.checks import check_recipe
from kdq_core.reading.recipe_file import document_from_text, recipe_from_document
from kdq_core.reading.studies import read_study
from kdq_core.recipe.study import FIELDS
from kdq_core.testing import __all__ as kits
from kdq_flows.cli import app
from tests.architecture.pages import LINK, PAGES, ROOT, blocks, commands, name_of, prose, titled

RECIPES = [
    pytest.param(text, id=f"{name_of(page)}-{number}")
    for page in PAGES
    for number, text in enumerate(block for block in blocks(page, "yaml") if block.startswith("name:"))
]


def test_every_room_has_a_readme() -> None:
    rooms = ("kdq_core", "plugins", "flows", "registry", "tests", "recipes", "benchmarks", "examples")
    assert [room for room in rooms if not (ROOT / room / "README.md").is_file()] == []
    assert len(RECIPES) >= 4


@pytest.mark.parametrize(
    ("room", "package"), [("kdq_core", "."), ("flows", "kdq_flows"), ("registry", "kdq_registry"), ("plugins", ".")]
)
def test_the_readme_of_a_room_names_all_that_stands_in_it(room: str, package: str) -> None:
    folder, text = ROOT / room / package, (ROOT / room / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
    named = set(re.findall(r"`([\w.]+)/?`", text))
    assert (files | rooms) - named == set()


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_in_the_documents_validates(text: str) -> None:
    document = document_from_text(text, "recipe")
    if FIELDS & document.value.keys():
        study = read_study(document, Catalog.load())
        assert len(study.branches) > 1 or study.spec.search is not None
    else:
        check_recipe(recipe_from_document(document), Catalog.load())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", prose(target), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, link


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_in_the_documents_exist(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True)[1:]
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            assert words, line
            alternatives = words.pop(0).split("|")
            assert set(alternatives) <= set(command.commands), line
            command = command.commands[alternatives[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_every_command_stands_in_the_readme() -> None:
    named = {line.split()[1] for line in commands(ROOT / "README.md")}  # "kdq run FILE"
    assert set(typer.main.get_command(app).commands) <= named  # type: ignore[attr-defined]


def test_environment_variables_in_the_documents_are_read_by_the_product() -> None:
    rooms = (ROOT / "kdq_core", ROOT / "registry", ROOT / "examples" / "src")
    read = [path for room in rooms for path in room.rglob("*.py")]
    source = "".join(path.read_text(encoding="utf-8") for path in read)
    used = set(re.findall(r"\bKDQ_[A-Z_]+\b", source))
    named = {name for page in PAGES for name in re.findall(r"\bKDQ_[A-Z_]+\b", page.read_text(encoding="utf-8"))}
    assert named <= used
    assert {"KDQ_HOME", "KDQ_DEVICE", "KDQ_THREADS", "KDQ_PRECISION", "KDQ_TRACKING_URI"} <= named


def test_the_guests_in_the_documents_are_those_of_the_tests() -> None:
    files = titled(ROOT / "docs" / "plugins.md", "file")
    assert len(files) == 7
    for name, text in files.items():
        assert text == (ROOT / name).read_text(encoding="utf-8"), name


@pytest.mark.rare
@pytest.mark.slow
def test_the_example_plugins_of_the_documents_install_and_keep_their_promises(guests: Path, tmp_path: Path) -> None:
    page, package, site = ROOT / "docs" / "plugins.md", tmp_path / "package", tmp_path / "site"
    for name, text in titled(page, "example").items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    (package / "src" / "my_kdq_plugins" / "__init__.py").touch()
    paths = os.pathsep.join((str(site), str(guests), *filter(None, [os.environ.get("PYTHONPATH")])))
    environment = {**os.environ, "PYTHONPATH": paths, "ORT_DISABLE_TELEMETRY": "1", "PIP_NO_CACHE_DIR": "1"}

    def run(*words: str | Path) -> str:
        done = subprocess.run(words, cwd=package, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    run(*pip, "--no-build-isolation", "--target", site, ".")
    kdq = Path(sys.executable).with_name("kdq")
    rounding = titled(page, "file")["tests/guest/kdq-guest-rounding/src/kdq_guest_rounding/rounding.py"]
    assert len(rounding.splitlines()) < 40
    (package / "rounding.py").write_text(rounding, encoding="utf-8")
    checked = run(kdq, "plugins", "check", "./rounding.py:GuestRounding")
    assert "quantizer './rounding.py:GuestRounding' keeps its promises: " in checked
    states = {row["name"]: row["state"] for row in json.loads(run(kdq, "plugins", "list", "--json"))}
    assert states["logit-mse"] == states["pooled-hint"] == states["calibration"] == states["guest-rounding"] == "ok"
    for number, text in enumerate(blocks(page, "yaml")):
        recipe = package / f"{number}.yaml"
        recipe.write_text(f"name: example\nworkload: digits\n{text}", encoding="utf-8")
        run(kdq, "validate", recipe)
    assert "4 passed" in run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests")


def test_the_documents_name_kits_that_exist() -> None:
    named = {kit for page in PAGES for kit in re.findall(r"\bcheck_[a-z]+\b", page.read_text(encoding="utf-8"))}
    assert (
        {f"check_{kind}" for kind in ("distiller", "evaluator", "quantizer", "stage", "target", "workload")}
        <= named
        <= set(kits)
    )


def test_the_picture_of_the_table_loads_nothing_from_elsewhere() -> None:
    drawn = (ROOT / "docs" / "result-table.svg").read_text(encoding="utf-8")
    assert "int8" in drawn
    assert "url(http" not in drawn.replace('"', "")
