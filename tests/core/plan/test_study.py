"""The plan of a study: nodes of equal identity are one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdq_core.plan.forecast import forecast_study
from kdq_core.plan.keys import Memo
from kdq_core.plan.plan import make_plan
from kdq_core.plan.study import PlannedBranch, StudyPlan
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.recipe_file import document_from_text
from kdq_core.reading.studies import read_study
from kdq_core.recipe.spec import Site
from kdq_core.store.records import Checkpoint
from kdq_core.store.store import Store

CATALOG = Catalog.load()


def planned(home: Path, over: str, more: str = "") -> StudyPlan:
    text = "name: x\nworkload: digits\nevaluate: [quality, size]\nquantize: {use: lsq}\n"
    text += f"matrix: {{over: {over}}}\n{more}"
    study = read_study(document_from_text(text, "r.yaml"), CATALOG)
    memo, site = Memo(), Site(home=home)
    plans = [(one, make_plan(one.recipe, site, CATALOG, memo)) for one in study.branches]
    return StudyPlan("x", tuple(PlannedBranch(one.name, one.axes, plan) for one, plan in plans))


def counts(plan: StudyPlan) -> dict[str, int]:
    return dict(Counter(one.node.name for one in plan.nodes.values()))


def serving(plan: StudyPlan, stage: str) -> Iterator[tuple[str, ...]]:
    return (one.branches for one in plan.nodes.values() if one.node.name == stage)


def test_branches_that_differ_in_quantization_share_all_before_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, "{quantize.weights: [8, 4]}")
    once = dict.fromkeys(("train_teacher", "cache_teacher", "distill", "place"), 1)
    assert counts(plan) == once | dict.fromkeys(("quantize", "export", "evaluate", "register"), 2)
    assert list(serving(plan, "distill")) == [("weights=8", "weights=4")]
    assert list(serving(plan, "quantize")) == [("weights=8",), ("weights=4",)]


def test_a_distiller_of_its_own_shares_the_teacher_alone(tmp_path: Path) -> None:
    plan = planned(tmp_path, "{distill.use: [logit-kd, dkd], quantize.weights: [8, 4]}")
    assert (counts(plan)["train_teacher"], counts(plan)["distill"], counts(plan)["quantize"]) == (1, 2, 4)
    assert [len(each) for each in serving(plan, "distill")] == [2, 2]


def test_the_title_of_a_node_says_for_which_branches_it_is(tmp_path: Path) -> None:
    over = "{distill.use: [logit-kd, dkd], quantize.weights: [8, 4]}"
    plan = planned(tmp_path, over, "gates: []\nregister: {name: same}\n")
    titles = [one.title for one in plan.nodes.values()]
    assert titles[0] == "train_teacher"
    assert {"distill@use=logit-kd", "distill@use=dkd", "quantize@use=dkd,weights=4"} <= set(titles)
    assert len(titles) == len(set(titles))
    more = planned(tmp_path, "{seed: [0, 1], quantize.weights: [8, 4]}")
    assert [one.title for one in more.nodes.values() if one.node.name == "train_teacher"] == [
        "train_teacher@seed=0", "train_teacher@seed=1",
    ]  # fmt: skip


def test_another_seed_shares_nothing_that_is_trained(tmp_path: Path) -> None:
    plan = planned(tmp_path, "{seed: [0, 1, 2]}")
    assert set((counts(plan) | {"place": 3}).values()) == {3}  # it times forms of the net, whatever its weights


def test_the_parents_of_a_node_come_before_it_and_are_known(tmp_path: Path) -> None:
    plan = planned(tmp_path, "{seed: [0, 1], quantize.weights: [8, 4]}")
    before: set[str] = set()
    for identity, one in plan.nodes.items():
        assert one.identity == identity
        assert set(one.parents) <= before
        before.add(identity)


def test_an_identity_holds_stage_parts_and_parents(tmp_path: Path) -> None:
    branch = planned(tmp_path, "{quantize.weights: [8]}").branches[0]
    known = dict(branch.identities)

    def changed(stage: str, **update: Any) -> set[str]:
        nodes = tuple(n.model_copy(update=update) if n.name == stage else n for n in branch.plan.nodes)
        other = PlannedBranch("y", {}, branch.plan.model_copy(update={"nodes": nodes}))
        return {name for name, identity in other.identities.items() if identity != known[name]}

    after = {"quantize", "export", "evaluate", "register"}
    assert changed("distill") == set()
    assert changed("quantize", parts={}) == after
    assert changed("quantize", use="another") == after
    assert changed("distill", parts={}) == after | {"distill"}


def test_equal_identities_have_equal_keys_and_different_ones_other_keys(tmp_path: Path) -> None:
    plan = planned(tmp_path, "{quantize.weights: [8, 4], seed: [0]}")
    keys: dict[str, set[str]] = {}
    for branch in plan.branches:
        digests: dict[str, str] = {}
        for node in branch.plan.nodes:
            key = node.key({name: digests[name] for name in node.parents.values()})
            digests[node.name] = key  # stands for the digest of its entry
            keys.setdefault(branch.identities[node.name], set()).add(key)
    assert all(len(each) == 1 for each in keys.values())
    assert len({next(iter(each)) for each in keys.values()}) == len(plan.nodes)


def test_the_forecast_tells_each_node_once_and_follows_what_the_store_has(tmp_path: Path) -> None:
    plan, store = planned(tmp_path, "{quantize.weights: [8, 4]}"), Store(tmp_path)
    assert [line.state for _, line in forecast_study(plan, store)] == ["run"] * len(plan.nodes)
    first = plan.branches[0].plan
    digests: dict[str, str] = {}
    for node in first.nodes:
        key, parts = node.key(digests), node.full_parts(digests)
        with store.draft(key) as draft:
            (draft / "weights").write_text(key)
            record = Checkpoint(slot="teacher", weights="weights", parameters=1)
            entry = store.commit(draft, stage=node.name, key=key, parts=parts, record=record)
        digests[node.name] = entry.digest
    states = {(one.node.name, one.branches): line for one, line in forecast_study(plan, store)}
    assert {name for (name, branches), line in states.items() if line.state == "run"} == {
        "quantize", "export", "evaluate", "register",
    }  # fmt: skip
    assert all(branches == ("weights=4",) for (_, branches), line in states.items() if line.state == "run")
    assert states["quantize", ("weights=4",)].why == "recipe.quantize.weights changed"


@pytest.mark.rare
def test_a_thousand_branches_are_read_and_planned_in_five_seconds_of_cpu(tmp_path: Path) -> None:
    began = time.process_time()
    plan = planned(
        tmp_path,
        "{quantize.weights: [8, 6, 4, 3, 2], quantize.use: [minmax-qat, lsq, pact, static], "
        f"distill.options.temperature: [1.0, 2.0, 4.0, 6.0, 8.0], seed: {list(range(10))}}}",
        "limits: {trials: 1000}",
    )
    assert (len(plan.branches), counts(plan)["train_teacher"], counts(plan)["quantize"]) == (1000, 10, 1000)
    assert time.process_time() - began <= 5
