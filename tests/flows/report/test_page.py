"""The page of a run, made from a recorded one."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.hookspecs import ReportSection, hookimpl
from kdq_core.plugins.loading import LoadedPlugin, _manager
from kdq_core.store.records import Metric
from kdq_flows.report import page as made
from kdq_flows.report.page import page

VOID = {"meta", "link", "img", "br"}


class Parsed(HTMLParser):
    """Checks that elements are closed in their order, and keeps attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def html(records: dict[str, Any], view_of: Any, record_of: Any) -> str:
    view = view_of(**records)
    return page(record_of(view), view, Catalog((), ()))


def test_the_page_is_sound_html_that_loads_nothing_and_runs_no_script(html: str) -> None:
    found = Parsed(html)
    assert found.open == []
    assert found.all("script") == []
    links = [value for _, attributes in found.found for name, value in attributes.items() if name in ("src", "href")]
    assert len(links) > 10
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert re.findall(r"url\(|@import|https?://", html) == []
    assert len(html) < 200_000


def test_pictures_have_names_tables_have_heads_and_every_link_inside_leads_somewhere(html: str) -> None:
    found = Parsed(html)
    assert [one for one in found.all("svg") if not (one.get("aria-label") or one.get("aria-hidden"))] == []
    assert [one for one in found.all("img") if not one["alt"]] == []
    ids = [attributes["id"] for _, attributes in found.found if "id" in attributes]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert {one["href"][1:] for one in found.all("a")} <= set(ids)
    assert all(one["aria-labelledby"] in ids for one in found.all("section"))
    assert len(found.all("table")) >= 5


def test_the_verdict_is_first_and_the_figures_are_in_tables_and_pictures(html: str) -> None:
    words = Parsed(html).words
    verdict = (
        "int8: +0.2 points top-1 against float (-2.0 to 3.0), 4.0x smaller, 1.2x the speed (1.1 to 1.3) at batch 1; "
        "1 of 1 gates not met"
    )
    assert words.index(verdict) < words.index("Models")
    assert "int8 top1 ≥ 0.95 0.9 0.95 not met" in words
    labels = [one.get("aria-label", "") for one in Parsed(html).all("svg")]
    assert "teacher: 900 kB, 100.00%" not in labels
    assert any("float student: 400 kB, 90%" in label for label in labels)
    assert "validation/top1: teacher ends at 90%; float student ends at 90%; int8 student ends at 85%." in labels
    assert "top-1 difference: int8 student: 0.2% (-2% to 3%)." in labels
    assert any(
        label.startswith("Graph of the stages: train_teacher; cache_teacher reads train_teacher;") for label in labels
    )
    assert "cache_teacher cached 2.5 s" in words


def test_answers_that_changed_are_shown_with_their_pictures(html: str) -> None:
    found = Parsed(html)
    assert [one["alt"] for one in found.all("img")] == ["image of test sample 3", "image of test sample 7"]
    assert "int8 lost sample 3, label 0 teacher 0 96 % float 0 96 % int8 1 96 %" in found.words
    assert "int8 gained sample 7, label 1" in found.words
    assert "Rows are labels, columns answers, over 10 labelled test samples. 0 1 2 0 -1 +1 1 -1 +1 2" in found.words
    assert "class samples float int8 0 4 100.00 % 75.00 % 1 3 66.67 % 100.00 %" in found.words


def test_layers_have_bits_kernel_and_reason_and_text_of_the_model_is_escaped(html: str) -> None:
    assert "<b>conv" not in html
    words = Parsed(html).words
    assert "<b>conv conv W4 / A8 QLinearConv 90.0 %" in words
    assert "head a rule linear float Gemm 10.0 %" in words


def test_corrupted_inputs_have_a_section_where_they_were_measured(
    records: dict[str, Any], view_of: Any, record_of: Any, html: str
) -> None:
    assert "Corrupted inputs" not in html
    report = records["evaluate"]
    more = {
        "student": [("robust_drop/noise", 0.1)],
        "int8": [("robust_drop/noise", 0.12), ("robust_drop_difference/noise", 0.02)],
    }
    models = dict(report.models)
    for slot, found in more.items():
        models[slot] += tuple(Metric(name=n, value=v, unit="fraction", direction="lower") for n, v in found)
    view = view_of(**{**records, "evaluate": report.model_copy(update={"models": models})})
    found = Parsed(page(record_of(view), view, Catalog((), ())))
    labels = [one.get("aria-label", "") for one in found.all("svg")]
    assert "robust drop: noise, float: 10%; noise, int8: 12%." in labels
    assert "robust drop difference: noise, int8: 2%." in labels


class Guest:
    """A plug-in with a section."""

    @hookimpl
    def kdq_report_sections(self, view: Any, result: Any) -> list[Any]:
        return [ReportSection(title="Energy", html=f"<p>{len(view.entries)} entries of {result.run}</p>")]


class Broken:
    """A plug-in whose section raises."""

    @hookimpl
    def kdq_report_sections(self) -> list[Any]:
        raise ValueError("no meter")


class Odd:
    """A plug-in that gives something else."""

    @hookimpl
    def kdq_report_sections(self) -> list[Any]:
        return ["<p>text</p>"]


def test_a_plugins_section_is_shown_and_one_that_fails_is_named(
    records: dict[str, Any], view_of: Any, record_of: Any
) -> None:
    view = view_of(**records)
    plugins = [LoadedPlugin(_manager(one), (), type(one).__name__.lower()) for one in (Broken(), Odd(), Guest())]
    words = Parsed(page(record_of(view), view, Catalog(plugins, ()))).words
    assert "Energy 5 entries of x-1" in words
    assert "plug-in 'broken' failed in kdq_report_sections: ValueError: no meter" in words
    assert "plug-in 'odd' gave a 'str' in kdq_report_sections; it must yield ReportSection" in words


def test_a_part_that_cannot_be_made_is_named_and_costs_no_other(
    records: dict[str, Any], view_of: Any, record_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(_view: Any) -> None:
        raise KeyError("odd record")

    monkeypatch.setattr(made.overview, "layers", raises)
    view = view_of(**records)
    words = Parsed(page(record_of(view), view, Catalog((), ()))).words
    assert "KDQ could not make the part 'layers': KeyError: 'odd record'" in words
    assert "Training curves" in words


def test_results_that_the_store_has_lost_are_named(records: dict[str, Any], view_of: Any, record_of: Any) -> None:
    record = record_of(view_of(**records))
    view = view_of(**{name: one for name, one in records.items() if name != "evaluate"})
    words = Parsed(page(record, view, Catalog((), ()))).words
    assert (
        "The store no longer has the results of cache_teacher, place, evaluate, register; run the recipe again" in words
    )


def contrast(first: str, second: str) -> float:
    """The contrast of two colours by WCAG 2.1, 1 to 21."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((light(first), light(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_marks_stand_out_in_light_and_in_dark(theme: int) -> None:
    css = (Path(made.__file__).parent / "templates" / "report.css").read_text()
    found = dict(re.findall(r"--([\w-]+): (#\w{6})", css.split(":root {")[1 + theme].split("}")[0]))
    for text, below in (("ink", "page"), ("ink", "card"), ("soft", "page"), ("soft", "card"), ("accent", "page"),
                        ("good", "good-bg"), ("bad", "bad-bg"), ("wait", "wait-bg")):  # fmt: skip
        assert contrast(found[text], found[below]) >= 4.5, (text, below)
    for mark in ("m0", "m1", "m2", "m3", "m4", "m5", "m6"):
        assert contrast(found[mark], found["card"]) >= 3, mark
