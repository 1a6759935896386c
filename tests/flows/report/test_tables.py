"""The pages of a study and of `kdq synergy`: one file, readable without scripts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kdq_core.recipe.spec import Site
from kdq_core.store.records import EvaluationReport, Metric
from kdq_flows.facts.result import RunResult
from kdq_flows.facts.state import RunState, file_of
from kdq_flows.facts.study import BranchFacts, SelectedFacts
from kdq_flows.facts.synergy import synergy
from kdq_flows.report import kept
from kdq_flows.report.tables import study_page, synergy_page

NAMES = ("use=lsq,weights=8", "use=lsq,weights=4", "use=<b>,weights=2")


def report(top1: float, size: float) -> EvaluationReport:
    quality = Metric(name="top1", value=top1, unit="fraction", direction="higher", low=top1 - 0.01, high=top1 + 0.01)
    size_of = Metric(name="bytes", value=size, unit="bytes", direction="lower")
    return EvaluationReport(models={"int8": (quality, size_of), "student": (quality, size_of)})


def study() -> RunResult:
    branches = [BranchFacts(branch=name, axes={}, status="completed") for name in NAMES[:2]]
    branches.append(BranchFacts(branch=NAMES[2], axes={}, status="failed", error="it <broke>"))
    selected = SelectedFacts(branch=NAMES[1], pareto=(NAMES[1],), verdict=f"{NAMES[1]}: bytes 100; of 2 branches")
    return RunResult(
        run="x-1", status="failed", seconds=1.0, stages=(), models={}, branches=tuple(branches), selected=selected
    )


def rows(html: str) -> dict[str, list[str]]:
    """Cells of each row by its first one, without tags."""
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", html):
        first, *cells = (re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row))
        found[first] = cells
    return found


def test_the_page_of_a_study_has_verdict_failures_a_row_for_each_branch_and_its_point() -> None:
    html = study_page(study(), {NAMES[0]: report(0.9, 200), NAMES[1]: report(0.8, 100)}, "kdq run x.yaml")
    assert f'<p class="verdict">{NAMES[1]}: bytes 100; of 2 branches</p>' in html
    assert '<p class="warn">use=&lt;b&gt;,weights=2: it &lt;broke&gt;</p>' in html
    table = rows(html)
    assert table["branch"] == ["selection", "status", "top-1", "bytes", "version"]
    assert table[f"1: {NAMES[0]}"] == ["", "completed", "90.00 % (89.00 % to 91.00 %)", "200 B", ""]
    assert table[f"2: {NAMES[1]}"] == ["selected", "completed", "80.00 % (79.00 % to 81.00 %)", "100 B", ""]
    assert table["3: use=&lt;b&gt;,weights=2"] == ["", "failed", "", "", ""]
    assert "<figcaption>top-1 against bytes</figcaption>" in html
    assert html.count('class="ring"') == 1
    assert "<pre>kdq run x.yaml</pre>" in html


def test_a_study_of_which_nothing_was_measured_has_a_page_without_charts() -> None:
    result = study().model_copy(update={"selected": None})
    html = study_page(result, {}, "kdq run x.yaml")
    assert "The recipe has no &#39;select&#39;, so no branch is selected." in html
    assert "<figure" not in html


def test_the_page_of_synergy_has_sentences_effects_and_cells() -> None:
    cells = {
        (who, path, 0 if path == "float" else 8): [0.5, 0.51, 0.52]
        for who in ("none", "kd")
        for path in ("float", "ptq", "qat")
    }
    cells["kd", "qat", 8] = [0.52, 0.531, 0.539]
    found = synergy(cells, recipe="r", metric="top-1", unit="fraction", direction="higher", epochs=4, bits=(8,))  # type: ignore[arg-type]
    html = synergy_page(found)
    assert f'<p class="verdict">{found.sentences[0]}</p>' in html
    table = rows(html)
    assert table["distiller"] == ["float", "PTQ, 8 bits", "QAT, 8 bits"]
    assert table["none"] == ["51.00 % ± 2.48 %"] * 3
    assert table["KD under QAT: kd, 8 bits"] == ["2.00 %", "1.75 % to 2.25 %", "helps", ""]
    assert table["KD in float: kd, 8 bits"] == ["0.00 %", "0.00 % to 0.00 %", "not shown", "over a thousand"]
    assert html.count("<figure") == 1
    assert "3 paired seeds, mean ± half of the 95 % interval; 4 epochs of each student in all." in html


def test_both_pages_load_nothing() -> None:
    html = study_page(study(), {NAMES[0]: report(0.9, 200), NAMES[1]: report(0.8, 100)}, "kdq run x.yaml")
    assert not re.search(r"<script|src=|url\(|@import|https?://", html.replace("http://www.w3.org", ""))


def test_the_command_of_synergy_repeats_its_bits_and_further_distillers() -> None:
    cells = {
        (who, path, 0 if path == "float" else bits): [0.5, 0.51]
        for bits in (8, 4)
        for who in ("none", "kd", "rkd", "crd")
        for path in ("float", "ptq", "qat")
    }
    found = synergy(cells, recipe="r", metric="top-1", unit="fraction", direction="higher", epochs=4, bits=(8, 4))  # type: ignore[arg-type]
    assert "<pre>kdq synergy r.yaml --seeds 2 --bits 8,4 --distillers rkd,crd</pre>" in synergy_page(found)


def test_the_page_of_a_study_is_made_anew_by_its_name_and_by_its_recipe(
    records: dict[str, Any], view_of: Any, record_of: Any, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, name = tmp_path / "home", "x-20260102-030405"
    record = record_of(view_of(**records), f"{name}.weights=8")
    kept.keep(Site(home=home), record)
    monkeypatch.setattr(kept.RunRecord, "view", lambda self, _store: view_of(**records))
    branches = (
        BranchFacts(branch="weights=8", axes={}, status="completed", run=f"{name}.weights=8"),
        BranchFacts(branch="weights=4", axes={}, status="completed", run=f"{name}.weights=4"),  # its record is gone
    )
    facts = study().model_copy(update={"run": name, "branches": branches, "selected": None})
    (home / "studies").mkdir()
    (home / "studies" / f"{name}.json").write_text(facts.model_dump_json())
    page = home / "studies" / f"{name}.html"
    for asked in (name, "x"):
        assert call("report", asked) == (0, f"{page}\n", "")
        table = rows(page.read_text())
        assert table["1: weights=8"][1:4] == ["completed", "90.00 % (80.00 % to 100.00 %)", "100 kB"]
        assert table["2: weights=4"][1:4] == ["completed", "", ""]
        assert " kdq run x.yaml</pre>" in page.read_text()
        page.unlink()
    state = RunState(run=name, recipe="x", owner="", kdq="", device="cpu", began=0.0)
    file_of(Site(home=home), name).parent.mkdir(parents=True)
    file_of(Site(home=home), name).write_text(state.model_dump_json())
    (home / "studies" / f"{name}.json").write_text(facts.model_dump_json().replace('"completed"', '"finished"'))
    code, _, told = call("report", name)
    assert code == 2
    assert told.startswith(f"error: the facts of study '{name}' cannot be read: Input should be ")
    assert told.endswith("; another version of KDQ wrote them. Run the recipe again\n")
