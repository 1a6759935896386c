"""Tables fit the terminal: nothing is broken within a word, and no column is empty."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kdq_flows.cli import common
from kdq_flows.cli.common import console
from kdq_flows.cli.tables import print_docstring, print_lists, print_table

ROWS: list[dict[str, object]] = [
    {"stage": "train_teacher", "after": "", "state": "run", "why": "never run before, so there is nothing to compare"},
    {"stage": "distill", "after": "", "state": "run", "why": "code.kdq_core.training.fit changed", "seconds": None},
]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Show rows at a width; gives the lines."""

    def shown(rows: list[dict[str, object]], width: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        common.show(rows, title="Plan of 'x'", as_json=False)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return shown


def test_a_table_that_fits_has_its_natural_width_and_no_column_of_empty_cells(shown) -> None:
    assert shown(ROWS, 160) == [
        "Plan of 'x'",
        "┏━━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓",
        "┃ stage         ┃ state ┃ why                                              ┃",
        "┡━━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩",
        "│ train_teacher │ run   │ never run before, so there is nothing to compare │",
        "│ distill       │ run   │ code.kdq_core.training.fit changed               │",
        "└───────────────┴───────┴──────────────────────────────────────────────────┘",
    ]


def test_a_table_that_is_too_wide_wraps_the_longest_texts_between_words(shown) -> None:
    assert shown(ROWS, 60) == [
        "Plan of 'x'",
        "┏━━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓",
        "┃ stage         ┃ state ┃ why                              ┃",
        "┡━━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩",
        "│ train_teacher │ run   │ never run before, so there is    │",
        "│               │       │ nothing to compare               │",
        "│ distill       │ run   │ code.kdq_core.training.fit       │",
        "│               │       │ changed                          │",
        "└───────────────┴───────┴──────────────────────────────────┘",
    ]


def test_a_table_whose_longest_words_do_not_fit_becomes_a_list(shown) -> None:
    assert shown(ROWS, 50) == [
        "Plan of 'x'",
        "train_teacher",
        "  state  run",
        "  why    never run before, so there is nothing to",
        "         compare",
        "distill",
        "  state  run",
        "  why    code.kdq_core.training.fit changed",
    ]


def test_a_word_longer_than_the_terminal_stays_whole(shown) -> None:
    page = "http://127.0.0.1:4200/" + "deployments/" * 6
    assert shown([{"fact": "url", "value": page}, {"fact": "pool", "value": "kdq"}], 40) == [
        "Plan of 'x'",
        f"  url   {page}",
        "  pool  kdq",
    ]


def test_numbers_stand_right_and_text_left(shown) -> None:
    rows: list[dict[str, object]] = [{"name": "a", "ms": 0.123456}, {"name": "b", "ms": 12}, {"name": "c"}]
    assert [line for line in shown(rows, 80) if "│" in line] == [
        "│ a    │ 0.1235 │",
        "│ b    │     12 │",
        "│ c    │        │",
    ]


def test_a_title_may_be_wider_than_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    common.show([{"a": 1}], title="a title of several words", as_json=False)
    assert capsys.readouterr().out.splitlines()[:2] == ["a title of several words", "┏━━━┓"]


def test_a_list_gives_a_long_name_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_lists(console(), [("[things] :a:", [("short", "a text in words that wrap at the end"), ("n" * 30, "text")])])
    assert capsys.readouterr().out.splitlines() == [
        "[things] :a:",
        "  short  a text in words that wrap at",
        "         the end",
        "  nnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
        "         text",
    ]


def test_a_docstring_is_wrapped_anew_but_keeps_breaks_that_its_author_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    long = "What: " + "word " * 19 + "that"
    print_docstring(console(), f"{long}\n    continues [here].\nFormula\n    y = x\n    z = y\n\nLast.")
    assert capsys.readouterr().out.splitlines() == [
        "What: word word word word word word word word word word word",
        "    word word word word word word word word that continues",
        "    [here].",
        "Formula",
        "    y = x",
        "    z = y",
        "",
        "Last.",
    ]


def test_a_table_shows_text_as_it_is_and_json_is_an_array(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, object]] = [{"name": "[bold]x", "value": float("nan")}, {"name": "y", "unit": "ms"}]
    common.show(rows, title="things", as_json=False)
    table = capsys.readouterr().out
    assert "[bold]x" in table
    assert "nan" not in table
    common.show(rows[1:], title="things", as_json=True)
    assert json.loads(capsys.readouterr().out) == rows[1:]


WORD = st.text(alphabet="abc-/.:_", min_size=1, max_size=14)
CELL = st.lists(WORD, max_size=12).map(" ".join)


@given(st.lists(st.lists(CELL, min_size=4, max_size=4), min_size=1, max_size=4), st.integers(40, 160))
def test_no_table_breaks_a_word_or_is_wider_than_the_terminal(cells: list[list[str]], width: int) -> None:
    rows: list[dict[str, object]] = [dict(zip(("name", "state", "key", "why"), row)) for row in cells]
    out = io.StringIO()
    print_table(Console(width=width, file=out), rows, "title")
    told = out.getvalue()
    assert max(len(line) for line in told.splitlines()) <= width
    assert sorted(word for row in cells for text in row for word in text.split()) == sorted(
        word
        for word in re.split(r"[\s┃│┏━┳┓┡╇┩└─┴┘]+", told)
        if word not in ("", "title", "name", "state", "key", "why")
    )


@pytest.mark.parametrize("width", [80, 160])
def test_the_tables_of_the_commands_fit_80_and_160_columns(call, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    Path("r.yaml").write_text("name: x\nworkload: digits\n")
    kept = {"plan": ["plan", "r.yaml"], "list": ["plugins", "list"], "show": ["plugins", "show", "static"]}
    for command in kept.values():
        monkeypatch.setenv("COLUMNS", str(width))
        lines = call(*command)[1].splitlines()
        assert max(map(len, lines)) <= width
    monkeypatch.setenv("COLUMNS", str(width))
    told = call("plan", "r.yaml")[1]
    for stage in json.loads(call("plan", "r.yaml", "--json")[1]):
        assert f"│ {stage['stage']} " in told
        assert stage["why"] in " ".join(told.replace("│", " ").split())
