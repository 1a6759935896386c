"""The precision of fits in float: what `KDQ_PRECISION` means, what plans say of it, and which keys hold it."""

from pathlib import Path
from typing import Any

import pytest

from kdq_core.plan.keys import site_of
from kdq_core.plan.lock import differences, locked
from kdq_core.plan.plan import Plan, make_plan
from kdq_core.plan.precision import precision_of, why
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.contract import Needs
from kdq_core.recipe.spec import Recipe, Site

AMX, BF16, OLD = frozenset({"amx_bf16", "avx512_bf16"}), frozenset({"avx512_bf16"}), frozenset({"avx2"})
AUTO = "fits in float compute in fp32, which KDQ_PRECISION=auto means everywhere"
FASTER = ", KDQ_PRECISION=bf16 makes them faster, and rounds the factors of products to 8 bits"
ASKED = "fits in float compute in bf16, as KDQ_PRECISION asks"
SLOWER = "; this CPU has no AMX, so bf16 is likely to take longer than fp32"


def planned(home: Path, precision: Any = "auto", device: str = "cpu") -> Plan:
    recipe = Recipe.model_validate({"name": "x", "workload": "digits", "gates": [], "teacher": {"precision": "fp32"}})
    return make_plan(recipe, Site(home=home, device=device, precision=precision), Catalog.load())


@pytest.mark.parametrize("cpu", [AMX, BF16, OLD])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_auto_is_fp32_on_every_machine_and_the_others_are_what_they_say(device: str, cpu: frozenset[str]) -> None:
    found = {p: precision_of(Site(home=Path("/x"), device=device, precision=p)) for p in ("auto", "fp32", "bf16")}  # type: ignore[arg-type]
    assert found == {"auto": "fp32", "fp32": "fp32", "bf16": "bf16"}
    assert why(Site(home=Path("/x"), device=device), cpu).startswith(AUTO)


@pytest.mark.parametrize(
    ("precision", "device", "cpu", "said"),
    [
        ("auto", "cpu", OLD, ""),
        ("auto", "cpu", BF16, ""),
        ("auto", "cpu", AMX, f"{AUTO}; on this CPU, which has AMX{FASTER}"),
        ("auto", "cuda:0", OLD, f"{AUTO}; on a GPU that computes in bf16{FASTER}"),
        ("fp32", "cpu", AMX, ""),
        ("bf16", "cpu", AMX, ASKED),
        ("bf16", "cuda:0", OLD, ASKED),
        ("bf16", "cpu", BF16, ASKED + SLOWER),
        ("bf16", "cpu", OLD, ASKED + SLOWER),
    ],
)
def test_a_plan_says_the_precision_where_it_is_bf16_or_could_be_faster(
    precision: str, device: str, cpu: frozenset[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdq_core.plan.plan.instruction_sets", lambda: cpu)
    assert planned(tmp_path, precision, device).note == said


def test_only_the_keys_of_fits_that_follow_the_site_hold_bf16(tmp_path: Path) -> None:
    def held(precision: str) -> dict[str, Any]:
        nodes = planned(tmp_path, precision).nodes
        return {node.name: node.parts["device"] for node in nodes if isinstance(node.parts.get("device"), dict)}

    auto, full, half = held("auto"), held("fp32"), held("bf16")
    assert auto == full
    assert {one["precision"] for one in full.values()} == {"fp32"}
    assert {name for name in full if full[name] != half[name]} == {"train_teacher", "distill"}
    assert {half[name]["precision"] for name in ("train_teacher", "distill")} == {"bf16"}
    assert {"cache_teacher", "quantize", "export", "evaluate"} < full.keys()


def test_a_stage_sees_the_precision_that_it_computes_in() -> None:
    site = Site(home=Path("/x"), device="cuda:0", precision="bf16")
    assert site_of(Needs(precision="site"), site).precision == "bf16"
    assert site_of(Needs(), site).precision == "fp32"
    assert site_of(Needs(precision="site"), Site(home=Path("/x"))).precision == "fp32"


def test_a_lock_holds_the_precision_itself_and_another_one_differs(tmp_path: Path) -> None:
    lock = locked(planned(tmp_path, "bf16"), {})
    assert lock.precision == "bf16"
    assert locked(planned(tmp_path), {}).precision == "fp32"
    (found,) = differences(lock, planned(tmp_path))
    assert (found.kind, found.what, found.locked, found.now) == ("machine", "precision", "bf16", "fp32")
    assert found.stages == ("train_teacher", "distill")
