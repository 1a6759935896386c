"""A version is compared with the champion on the same samples: shown to be worse, it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import DEFAULT_GATES, Gate, Site
from kdq_core.store.records import EvaluationReport, Metric, ModelVersion
from kdq_registry.aliases import read_aliases
from kdq_registry.comparing import compare
from kdq_registry.environment import client
from kdq_registry.history import history
from kdq_registry.policy import Policy, check_metrics, read_policy
from kdq_registry.promotion import Moved, promote, rollback

EASY = (Gate(metric="top1", at_least=0.0),)


def right(share: float, samples: int = 200) -> dict[str, np.ndarray]:
    return {"top1": (np.arange(samples) < share * samples).astype(np.uint8)}


def aliases_of(site: Site) -> dict[str, int]:
    return read_aliases(client(site), "digits")


def report(*metrics: tuple[str, str]) -> EvaluationReport:
    made = tuple(Metric(name=n, value=0, unit="", direction=d) for n, d in metrics)  # type: ignore[arg-type]
    return EvaluationReport(models={"int8": made})


def test_mcnemar_is_exact_on_the_samples_that_differ() -> None:
    ours, theirs = right(0.9), right(0.95)
    (one,) = compare(ours, theirs, report(("top1", "higher")))
    assert (one.version, one.champion, one.samples, one.test, one.verdict) == (0.9, 0.95, 200, "McNemar", "worse")
    assert one.p == pytest.approx(2 * 0.5**10)
    assert one.low < one.difference < one.high
    (other,) = compare(right(0.97), right(0.98), report(("top1", "higher")))
    assert (other.verdict, other.p) == ("undecided", 0.5)
    (same,) = compare(ours, ours, report(("top1", "higher")))
    assert (same.verdict, same.p) == ("undecided", 1.0)


def test_numbers_are_compared_by_a_paired_bootstrap_and_lower_errors_are_better() -> None:
    errors = np.random.default_rng(0).exponential(size=300).astype(np.float32)
    ours, theirs = {"rmse": errors, "mae": errors}, {"rmse": errors * 1.21, "mae": errors + 0.1}
    both = {one.metric: one for one in compare(ours, theirs, report(("rmse", "lower"), ("mae", "lower")))}
    assert {one.verdict for one in both.values()} == {"better"}
    assert both["rmse"].difference == pytest.approx(-0.1 * float(np.sqrt(errors.mean())), rel=1e-4)
    assert both["mae"].p is None
    assert [one.verdict for one in compare(theirs, ours, report(("rmse", "lower"), ("mae", "lower")))] == ["worse"] * 2


def test_samples_of_another_number_are_not_compared() -> None:
    assert list(compare(right(0.9), right(0.9, samples=100), report(("top1", "higher")))) == []


def test_a_worse_version_is_refused_with_its_table_forced_with_its_reason_and_rolled_back(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered(0, samples=right(0.95)), registered(1, gates=EASY, top1=0.18, samples=right(0.18))
    assert promote(site, "digits", 1).promoted
    refused = promote(site, "digits", 2)
    assert not refused.promoted
    assert refused.against == (
        "int8 top1 0.18 is worse than the champion's 0.95 on the same 200 samples (McNemar, p = 8.8e-47)",
    )
    assert [(one.metric, one.verdict) for one in refused.comparisons] == [("top1", "worse")]
    forced = promote(site, "digits", 2, force="the old one leaks")
    assert (forced.promoted, forced.kind) == (True, "force")
    back = rollback(site, "digits", reason="18 % is too little")
    assert (back.promoted, back.version, back.before) == (True, 1, 2)
    rows, _ = history(site, "digits")
    assert [row["kind"] for row in rows] == ["move", "refuse", "force", "rollback"]
    assert rows[2]["reason"] == f"the old one leaks; {refused.against[0]}"
    assert rows[3]["reason"] == "18 % is too little"
    assert rows[3]["aliases"] == {"champion": 1, "previous": 2}
    assert all(len(row["seal"]) == len(row["report"]) == 64 for row in rows)


def test_a_policy_may_allow_a_worse_version_or_compare_nothing(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered(0, samples=right(0.95)), registered(1, gates=EASY, samples=right(0.5))
    promote(site, "digits", 1)
    assert not promote(site, "digits", 2, policy=Policy(compare=("top1",))).promoted
    policy = Policy(worse="allow")
    allowed = promote(site, "digits", 2, policy=policy)
    assert (allowed.promoted, allowed.kind, allowed.comparisons[0].verdict) == (True, "move", "worse")
    assert history(site, "digits")[0][-1]["policy"] == policy.digest


def test_other_data_leaves_the_comparison_undecided_and_a_gate_on_the_champion_unmet(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered(0, samples=right(0.95)), registered(1, gates=EASY, samples=right(0.18), data="c" * 64)
    promote(site, "digits", 1)
    gates = tuple(Gate(metric=name, at_least=0.5, relative_to="champion") for name in ("top1", "bytes"))
    refused = promote(site, "digits", 2, policy=Policy(gates=gates))
    assert [(one.met, one.note) for one in refused.verdicts] == [
        (False, "undecided: version and champion were not measured on the same samples"), (True, ""),
    ]  # fmt: skip
    assert not refused.promoted
    assert refused.comparisons == ()
    assert refused.notes == ("undecided: version and champion were not measured on the same samples",)


def test_a_gate_relative_to_the_champion_is_met_without_one_and_judged_by_its_value(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    gates = (Gate(metric="top1", at_least=0.99, relative_to="champion"),)
    registered(0, gates=gates, top1=0.97), registered(1, gates=gates, top1=0.9)
    first = promote(site, "digits", 1)
    assert (first.promoted, first.verdicts[0].note) == (True, "there is no champion yet")
    refused = promote(site, "digits", 2)
    (verdict,) = refused.verdicts
    assert (verdict.rule, verdict.bound, verdict.met) == (
        "int8 top1 ≥ 0.99 x champion top1", pytest.approx(0.99 * 0.97), False,
    )  # fmt: skip


def test_a_champion_that_cannot_be_read_is_told_and_can_be_replaced(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    from tests.registry.test_blessing import deletes_the_file, folder_of

    registered(0, samples=right(0.95)), registered(1, samples=right(0.95))
    promote(site, "digits", 1)
    deletes_the_file(folder_of(site))
    done = promote(site, "digits", 2)
    assert done.promoted
    assert done.notes == ("undecided: the champion, version 1, cannot be read: its file 'model.onnx' is missing",)
    with pytest.raises(Exception, match=r"version 1 of model 'digits' cannot be promoted: its file 'model.onnx' is"):
        rollback(site, "digits")
    assert client(site).get_model_version_by_alias("digits", "champion").version == 2


def test_a_challenger_needs_no_gates_and_stops_being_one_as_champion(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered(0), registered(1, top1=0.5)
    promote(site, "digits", 1)
    assert promote(site, "digits", 2, alias="challenger").promoted
    assert history(site, "digits")[0][-1]["aliases"] == {"challenger": 2, "champion": 1}
    moved = promote(site, "digits", 2, force="try it")
    assert history(site, "digits")[0][-1]["aliases"] == {"champion": 2, "previous": 1}
    assert moved.others == (
        Moved(alias="challenger", before=2, after=None), Moved(alias="previous", before=None, after=1),
    )  # fmt: skip
    rows, before = history(site, "digits")[0], aliases_of(site)
    with pytest.raises(RecipeError) as caught:
        promote(site, "digits", 2, alias="challenger")
    assert str(caught.value) == (
        "version 2 of 'digits' is its champion, and a challenger is tried beside the champion; name another version, "
        "or make another one champion first"
    )
    assert (history(site, "digits")[0], aliases_of(site)) == (rows, before)


def test_there_is_nothing_to_roll_back_to(site: Site, registered: Callable[..., ModelVersion]) -> None:
    registered()
    promote(site, "digits", 1)
    with pytest.raises(RecipeError) as caught:
        rollback(site, "digits")
    assert str(caught.value) == (
        "model 'digits' has no 'previous' to roll back to; `kdq models` lists its versions, and `kdq promote digits "
        "VERSION` makes one of them the champion"
    )


def test_a_policy_on_a_metric_that_nobody_measured_names_the_nearest(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered()
    with pytest.raises(RecipeError) as caught:
        promote(site, "digits", 1, policy=Policy(gates=(Gate(metric="topp1", at_least=0.9),)))
    assert str(caught.value) == (
        "the policy has a gate on the metric 'topp1', which the report of version 1 of 'digits' does not have; did you "
        "mean 'top1'? It has: bytes, coverage_macs, parity_flips, speedup, top1; `kdq pull digits/1 DIR` writes all of "
        "them to DIR/model-card.md"
    )
    with pytest.raises(RecipeError, match="a gate on the model 'int9', and the report of version 1 of 'digits' has: "):
        promote(site, "digits", 1, policy=Policy(gates=(Gate(metric="top1", of="int9", at_least=0.9),)))
    assert client(site).get_registered_model("digits").aliases == {}


def test_of_many_metrics_a_policy_gets_the_nearest_and_where_all_are() -> None:
    names = ["top1", "top5", "bytes", *(f"recall_of_class_{number}" for number in range(42))]
    metrics = tuple(Metric(name=name, value=0, unit="", direction="higher") for name in names)
    with pytest.raises(RecipeError) as caught:
        check_metrics((Gate(metric="topp1", at_least=0.9),), EvaluationReport(models={"int8": metrics}), "digits", 3)
    assert str(caught.value) == (
        "the policy has a gate on the metric 'topp1', which the report of version 3 of 'digits' does not have; did you "
        "mean 'top1'? It has: top1, top5 and 43 more; `kdq pull digits/3 DIR` writes all of them to DIR/model-card.md"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no policy file 'policy.yaml'; check the path"),
        ("", "policy 'policy.yaml' is empty; it needs at least one of 'gates', 'signers', 'worse' and 'compare'"),
        ("- gates", "policy 'policy.yaml' is a list, not a mapping; write its keys without '- ', at least one of "
                    "'gates', 'signers', 'worse' and 'compare'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_policy_is_called_a_policy(
    text: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("policy.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_policy(Path("policy.yaml"))
    assert str(caught.value) == told
    Path("policy.py").write_text("gates = []")
    with pytest.raises(RecipeError, match=r"^'policy.py' is a Python file, and a policy is a YAML file$"):
        read_policy(Path("policy.py"))


def test_a_policy_file_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("gates:\n- {metric: top1, at_least: 0.9}\nworse: allow\n")
    assert read_policy(path) == Policy(gates=(Gate(metric="top1", at_least=0.9),), worse="allow")
    path.write_text("gate: []\n")
    with pytest.raises(RecipeError) as caught:
        read_policy(path)
    assert str(caught.value) == (
        f"{path}:1: unknown key 'gate' of a policy; did you mean 'gates'? allowed: compare, gates, signers, worse"
    )
    path.write_text("signers: [abc]\n")
    with pytest.raises(RecipeError, match="a signer is a public key of 64 hex digits, as `kdq verify` prints it"):
        read_policy(path)


def test_the_example_policy_is_one(site: Site) -> None:
    root = Path(__file__).resolve().parents[2]
    policies = sorted((root / "registry" / "policies").glob("*.yaml"))
    assert [len(read_policy(path).gates or ()) > 0 for path in policies] == [True]


def test_a_gate_relative_to_the_champion_cannot_be_required() -> None:
    with pytest.raises(ValueError, match="a gate relative to the champion is judged at a promotion, so it cannot be"):
        Gate(metric="top1", at_least=0.9, relative_to="champion", required=True)
    assert DEFAULT_GATES[0].relative_to == "teacher"
