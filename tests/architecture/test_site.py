"""The site: its navigation, its generated pages, and that it loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdq_core.reading.recipe_file import recipe_from_text
from tests.architecture.pages import ROOT, blocks, script

DOCS = ROOT / "docs"
GENERATED: dict[str, Any] = script("make_pages").PAGES


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_current(name: str) -> None:
    assert GENERATED[name]() == (DOCS / name).read_text(encoding="utf-8"), "run python docs/make_pages.py"


def test_the_gates_of_the_recipe_reference_are_the_default_ones() -> None:
    [block] = [text for text in blocks(DOCS / "recipe.md", "yaml") if text.startswith("gates:")]
    start = "name: x\nworkload: digits\n"
    assert recipe_from_text(start + block).gates == recipe_from_text(start).gates


def test_the_navigation_names_each_page_once() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = re.findall(r"[\w-]+\.md", str(navigation))
    assert sorted(named) == sorted(path.name for path in DOCS.glob("*.md"))


def test_a_page_of_the_site_links_to_no_file_outside_of_it() -> None:
    outside = {path.name for path in DOCS.glob("*.md") if "](../" in path.read_text(encoding="utf-8")}
    assert outside == set()


def test_the_table_of_the_first_page_is_that_of_the_benchmark() -> None:
    first = (DOCS / "index.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in first.splitlines() if line.startswith("|"))
    assert table.count("\n") == 4
    assert table in (ROOT / "benchmarks" / "pipeline.md").read_text(encoding="utf-8")


def test_every_number_of_the_gallery_stands_in_a_recipe_or_a_benchmark() -> None:
    sources = [
        *(ROOT / "recipes").glob("*.yaml"),
        *(ROOT / "benchmarks").glob("*.md"),
        ROOT / "examples" / "RESULTS.md",
    ]
    known = "".join(path.read_text(encoding="utf-8") for path in sources)
    lines = (DOCS / "gallery.md").read_text(encoding="utf-8").splitlines()
    own = [
        line
        for line in lines
        if re.search(r"\d", line) and not line.startswith(("#", "kdq run ")) and line not in known
    ]
    assert own == []


@pytest.mark.parametrize("name", ["pipeline.svg", "result-table.svg"])
def test_a_picture_loads_nothing_from_elsewhere(name: str) -> None:
    drawn = (DOCS / name).read_text(encoding="utf-8")
    assert "int8" in drawn
    assert "http" not in drawn.replace("http://www.w3.org/", "").replace("https://www.textualize.io", "")


def test_a_page_that_loads_something_from_another_host_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<link rel="canonical" href="https://kdq.example/"><a href="https://kdq.example">a link</a>'
        '<script src="here.js"></script><script src="https://there.example/a.js"></script><img src="//there.example/b">'
    )
    (tmp_path / "style.css").write_text("@font-face { src: url('https://there.example/c.woff2') } a { b: url(d.svg) }")
    assert list(script("check_site").foreign(tmp_path)) == [
        "page.html loads https://there.example/a.js",
        "page.html loads //there.example/b",
        "style.css loads https://there.example/c.woff2",
    ]


def test_a_docstring_becomes_paragraphs_and_lists() -> None:
    text = (
        "Round x_1 to [0, 1].\n\nArgs:\n    x: a tensor `[B, C]`, of\n        floats.\n    *rest: more.\n\nReturns:\n"
    )
    assert script("prose").markdown(f"{text}    One.") == (
        "Round x\\_1 to \\[0, 1].\n\nArgs:\n\n- `x`: a tensor `[B, C]`, of floats.\n- `*rest`: more.\n\n"
        "Returns:\n\n- One."
    )


def test_a_method_card_becomes_a_list() -> None:
    text = "Quantizer `x`.\n\nWhat: rounds a * b\n    to integers.\nLimits\n    None."
    assert script("prose").card(text) == "- **What**: rounds a \\* b to integers.\n- **Limits**: None."


def test_a_method_card_without_headings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a line of a method card starts with no heading: 'rounds to integers'$"):
        script("prose").card("Quantizer `x`.\n\nrounds to integers")
