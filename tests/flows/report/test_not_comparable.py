"""A baseline that cannot be trusted: the verdict and the page say so in place of a comparison."""

from __future__ import annotations

from typing import Any

import pytest

from kdq_core.plan.gates import judge
from kdq_core.plan.view import RunView
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Gate
from kdq_core.store.records import Anomaly
from kdq_core.work.effects import Explained, Files, Part, Patched
from kdq_flows.facts.result import anomalies_of
from kdq_flows.facts.verdict import verdict_of
from kdq_flows.report.page import page

ODD = Anomaly(rule="student top1 on 'test'", value=0.1, bound=0.83, model="student", note="mend the test split")
VERDICT = "NOT COMPARABLE: student top1 on 'test' is 0.1, bound 0.83"


@pytest.fixture
def odd(records: dict[str, Any], view_of: Any) -> RunView:
    report = records["evaluate"].model_copy(update={"anomalies": (ODD,)})
    view: RunView = view_of(**{**records, "evaluate": report})
    return view


def test_the_verdict_says_why_in_place_of_a_comparison(odd: RunView, records: dict[str, Any], view_of: Any) -> None:
    gates = judge((Gate(metric="top1", at_least=0.9, relative_to="student"),), odd.entries["evaluate"].record)  # type: ignore[arg-type]
    assert verdict_of(odd, (), gates) == VERDICT
    assert "against float" in verdict_of(view_of(**records), (), ())


def test_the_page_has_the_verdict_and_what_to_do_and_no_large_figures(odd: RunView, record_of: Any) -> None:
    record = record_of(odd)
    record = record.model_copy(update={"result": record.result.model_copy(update={"anomalies": anomalies_of(odd)})})
    html = page(record, odd, Catalog((), ()))
    assert VERDICT.replace("'", "&#39;") in html
    assert '<p class="warn">mend the test split</p>' in html
    assert '<ul class="tiles">' not in html
    assert '<ul class="tiles">' in page(record_of(odd), odd, Catalog((), ()))  # but for the anomaly it would be there


def test_the_verdict_says_what_post_training_alone_would_give(records: dict[str, Any], view_of: Any) -> None:
    quantized = records["quantize"].model_copy(update={"untrained": {"validation/loss": 1.0, "validation/top1": 0.839}})
    told = verdict_of(view_of(**{**records, "quantize": quantized}), (), ())
    assert told.endswith("; post-training alone would give 83.9 % top-1 on validation, and trained it has 85.0 %")
    assert "post-training" not in verdict_of(view_of(**records), (), ())


def test_samples_of_text_are_shown_as_text(records: dict[str, Any], view_of: Any, record_of: Any) -> None:
    report = records["evaluate"]
    shown = report.shown.model_copy(update={"texts": ("play some <jazz>", "")})
    view = view_of(**{**records, "evaluate": report.model_copy(update={"shown": shown})})
    html = page(record_of(view), view, Catalog((), ()))
    assert '<p class="text">text: play some &lt;jazz&gt;</p>' in html
    assert html.count('alt="image of test sample') == 1  # the other sample has no text


def test_what_explain_found_is_on_the_page(records: dict[str, Any], view_of: Any, record_of: Any) -> None:
    from kdq_core.recipe.spec import Rule

    view = view_of(**records)
    lost = Part(column="faint", value="1", samples=50, in_float=0.9, in_int8=0.2, low=-0.8, high=-0.5, verdict="lost")
    patched = Patched(
        quality=0.89, db=20.0, low=-0.02, high=0.01, bytes=5000, ms=0.1, shipped_ms=0.09, speedup=1.5, speedup_low=1.4,
        speedup_high=1.6,
    )  # fmt: skip
    found = Explained(
        samples=9, in_float=0.9, quantized=0.5, quantized_db=3.0, effects=(), rules=(Rule(match="stem", skip=True),),
        files=Files(samples=100, in_float=0.9, in_int8=0.5, parts=(lost,), lost=40, gained=0), patched=patched,
    )  # fmt: skip
    html = " ".join(page(record_of(view), view, Catalog((), ()), found).split())
    assert '<span class="pill bad">int8 lost it</span>' in html
    assert "ran it over the test split: 89.00 % right, where float has 90.00 % and int8 50.00 %; 5 kB; 1.5x" in html
    assert "match: stem, skip: true" in html
    silent = found.model_copy(update={"patched": None, "note": "the file with these rules cannot be made: odd"})
    assert "the file with these rules cannot be made: odd" in page(record_of(view), view, Catalog((), ()), silent)
