import math
from collections.abc import Callable
from pathlib import Path

import pytest

from kdq_core.errors import RecipeError, StageError
from kdq_core.plan.gates import judge
from kdq_core.recipe.spec import DEFAULT_GATES, Gate, Site
from kdq_core.store.records import EvaluationReport, ModelVersion
from kdq_registry.environment import client
from kdq_registry.fetching import fetch
from kdq_registry.history import history
from kdq_registry.listing import list_models
from kdq_registry.promotion import promote, rollback


def test_gates_tell_rule_value_bound_and_verdict(report_of: Callable[..., EvaluationReport]) -> None:
    gates = (*DEFAULT_GATES, Gate(metric="latency_p50_ms", at_most=1.5))
    told = [v.model_dump() for v in judge(gates, report_of(top1=0.9, coverage=1.0, flips=2.0))]
    assert told == [
        {"rule": "int8 top1 ≥ 0.95 x teacher top1", "value": 0.9, "bound": 0.95 * 0.98, "met": False, "note": ""},
        {"rule": "int8 coverage_macs ≥ 1", "value": 1.0, "bound": 1.0, "met": True, "note": ""},
        {"rule": "int8 parity_flips ≤ 0", "value": 2.0, "bound": 0.0, "met": False, "note": ""},
        {"rule": "int8 speedup (low end) ≥ 0.98", "value": 1.4, "bound": 0.98, "met": True, "note": ""},
        {"rule": "int8 latency_p50_ms ≤ 1.5", "value": None, "bound": 1.5, "met": False,
         "note": "no evaluator measured it for int8; they measured: bytes, coverage_macs, parity_flips, speedup, top1"},
    ]  # fmt: skip


def test_a_gate_on_what_is_no_number_is_not_met(report_of: Callable[..., EvaluationReport]) -> None:
    verdicts = judge((Gate(metric="top1", at_least=0.0), Gate(metric="top1", at_most=9.0)), report_of(float("nan")))
    assert [verdict.met for verdict in verdicts] == [False, False]


def test_a_gate_relative_to_an_unmeasured_model_is_not_met(report_of: Callable[..., EvaluationReport]) -> None:
    (verdict,) = judge((Gate(metric="top1", at_least=0.5, relative_to="student"),), report_of())
    assert (verdict.value, verdict.bound, verdict.met) == (0.97, None, False)


def aliases_of(site: Site) -> dict[str, int]:
    return {alias: int(number) for alias, number in client(site).get_registered_model("digits").aliases.items()}


def test_a_promotion_moves_the_alias_and_writes_who_and_why(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered(0), registered(1)
    first, second = promote(site, "digits", 1), promote(site, "digits", 2)
    assert (first.promoted, first.before) == (True, None)
    assert (second.promoted, second.before) == (True, 1)
    assert client(site).get_model_version_by_alias("digits", "champion").version == 2
    rows, _ = history(site, "digits")
    assert [(row["kind"], row["from"], row["to"]) for row in rows] == [("move", None, 1), ("move", 1, 2)]
    assert [row["aliases"] for row in rows] == [{"champion": 1}, {"champion": 2, "previous": 1}]
    assert "@" in rows[1]["actor"]
    assert rows[1]["previous"] == rows[0]["digest"] == first.entry
    assert {alias: int(n) for alias, n in client(site).get_registered_model("digits").aliases.items()} == rows[1][
        "aliases"
    ]


def test_an_unmet_gate_leaves_the_alias(site: Site, registered: Callable[..., ModelVersion]) -> None:
    registered(0), registered(1, top1=0.5, coverage=0.9)
    promote(site, "digits", 1)
    refused = promote(site, "digits", 2)
    assert not refused.promoted
    assert [verdict.met for verdict in refused.verdicts] == [False, False, True, True]
    assert client(site).get_model_version_by_alias("digits", "champion").version == 1
    row = history(site, "digits")[0][-1]
    assert (row["kind"], row["from"], row["to"], row["aliases"]) == ("refuse", 1, 2, {"champion": 1})
    assert row["reason"] == ("int8 top1 ≥ 0.95 x teacher top1 is not met: 0.5; int8 coverage_macs ≥ 1 is not met: 0.9")


def test_the_champion_is_not_promoted_again(site: Site, registered: Callable[..., ModelVersion]) -> None:
    registered()
    assert not promote(site, "digits", 1).already
    rows, _ = history(site, "digits")
    tags = client(site).get_model_version("digits", "1").tags
    again = promote(site, "digits", 1)
    assert (again.promoted, again.already, again.before) == (True, True, 1)
    assert history(site, "digits")[0] == rows
    assert client(site).get_model_version("digits", "1").tags == tags


def test_tightened_gates_stand_against_bytes_that_are_registered_already(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    first = registered()
    assert registered(gates=(Gate(metric="top1", at_least=0.975),)) == first
    refused = promote(site, "digits", 1)
    assert [(verdict.rule, verdict.met) for verdict in refused.verdicts] == [("int8 top1 ≥ 0.975", False)]
    assert not refused.promoted


def test_a_newer_report_of_the_same_bytes_is_the_one_that_is_judged(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    assert registered(top1=0.5) == registered(top1=0.97)
    assert promote(site, "digits", 1).promoted


def test_a_veto_leaves_the_alias(site: Site, registered: Callable[..., ModelVersion]) -> None:
    registered()
    asked = []

    def vetoes(name: str, version: int, report: EvaluationReport) -> list[str]:
        asked.append((name, version, report.value("int8", "top1")))
        return ["the fairness audit is missing"]

    refused = promote(site, "digits", 1, vetoes=vetoes)
    assert asked == [("digits", 1, 0.97)]
    assert (refused.promoted, refused.vetoes) == (False, ("the fairness audit is missing",))
    assert client(site).get_registered_model("digits").aliases == {}


def test_an_unknown_model_gets_a_suggestion(site: Site, registered: Callable[..., ModelVersion]) -> None:
    registered()
    with pytest.raises(RecipeError) as caught:
        promote(site, "digitz", 1)
    assert str(caught.value) == (
        "no registered model named 'digitz'; did you mean 'digits'? Registered: digits; name one of these (`kdq "
        "models` lists their versions)."
    )


def test_an_unknown_version_gets_the_list(site: Site, registered: Callable[..., ModelVersion]) -> None:
    registered(0), registered(1)
    with pytest.raises(RecipeError) as caught:
        promote(site, "digits", 7)
    assert str(caught.value) == "model 'digits' has no version 7. Versions: 1, 2; name one of these."


def test_a_home_without_models_stays_empty(tmp_path: Path) -> None:
    site = Site(home=tmp_path / "home")
    assert list_models(site) == ([], [])
    with pytest.raises(RecipeError) as caught:
        promote(site, "digits", 1)
    assert str(caught.value) == "no registered model named 'digits'. Registered: none; `kdq run FILE` registers one."
    assert not site.home.exists()


def test_a_version_of_another_tool_is_listed_and_not_promoted(site: Site) -> None:
    mlflow = client(site)
    mlflow.create_registered_model("other")
    mlflow.create_model_version("other", "file:///nowhere", mlflow.create_run("0").info.run_id)
    (row,), _ = list_models(site)
    assert {name: row[name] for name in ("name", "version", "top1", "bytes", "sha256")} == {
        "name": "other",
        "version": 1,
        "top1": None,
        "bytes": None,
        "sha256": None,
    }
    with pytest.raises(StageError) as caught:
        promote(site, "other", 1)
    assert str(caught.value) == (
        "version 1 of model 'other' cannot be promoted: its file 'manifest.json' is missing, so nothing says which "
        "bytes KDQ registered; promote another version, or register the model again"
    )


def test_models_are_listed_newest_first_with_their_aliases(site: Site, registered: Callable[..., ModelVersion]) -> None:
    first, second = registered(0), registered(1, top1=0.99)
    promote(site, "digits", 1)
    rows = [{k: v for k, v in row.items() if k != "created"} for row in list_models(site)[0]]
    common = {"name": "digits", "bytes": 1234}
    assert rows == [
        common | {"version": 2, "aliases": [], "top1": 0.99, "sha256": second.file_sha256[:12]},
        common | {"version": 1, "aliases": ["champion"], "top1": 0.97, "sha256": first.file_sha256[:12]},
    ]
    assert list_models(site)[0][0]["created"].endswith("+00:00")


def test_a_version_whose_metrics_are_not_finite_is_listed_and_not_promoted(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered(0, top1=math.nan, coverage=math.inf)
    (row,), _ = list_models(site)
    assert row["top1"] == "NaN"
    refused = promote(site, "digits", 1)
    assert [verdict.met for verdict in refused.verdicts] == [False, False, True, True]
    assert [verdict.note for verdict in refused.verdicts] == [
        "int8 top1 is not finite, which meets no gate", "int8 coverage_macs is not finite, which meets no gate", "", "",
    ]  # fmt: skip


def test_of_many_versions_the_newest_and_those_with_an_alias_are_listed(
    site: Site, registered: Callable[..., ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdq_registry.listing.NEWEST", 1)
    registered(0), registered(1), registered(2)
    promote(site, "digits", 1)
    rows, notes = list_models(site)
    assert [row["version"] for row in rows] == [3, 1]
    assert notes == ["older versions of 'digits' are not shown; `kdq models --all` shows them"]
    rows, notes = list_models(site, everything=True)
    assert ([row["version"] for row in rows], notes) == ([3, 2, 1], [])


def test_neither_promotion_nor_fetching_reads_all_versions_of_a_model(
    site: Site, registered: Callable[..., ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    registered(0), registered(1)

    def reads_all(*_: object) -> None:
        raise AssertionError("MLflow read every version; see `direct` in kdq_registry.versions")

    monkeypatch.setattr(SqlAlchemyStore, "get_registered_model", reads_all)
    assert promote(site, "digits", 1).promoted
    assert promote(site, "digits", 2).promoted
    assert rollback(site, "digits").promoted
    assert fetch(site, "digits@champion").version == 1
    assert registered(0).version == 1
