"""What a plan asks of a machine's devices: how many, and what that does to keys."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdq_core.errors import RecipeError
from kdq_core.plan.plan import Plan, make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.contract import Needs
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.work.run import _own_process
from kdq_stages.distill import Distill

CATALOG = Catalog.load()


def plan(home: Path, site: dict[str, Any], **recipe: Any) -> Plan:
    asked = {"name": "digits", "workload": "digits", **recipe}
    return make_plan(Recipe.model_validate(asked), Site(home=home, **site), CATALOG)


TWO = {"fit": {"devices": 2}}
GPUS = {"device": "cuda:0", "devices": ("cuda:0", "cuda:1")}


@pytest.mark.parametrize("site", [{"cpu_slots": 2}, GPUS], ids=["slots", "GPUs"])
def test_a_stage_asks_for_the_devices_of_its_fit(site: dict[str, Any], tmp_path: Path) -> None:
    made = plan(tmp_path, site, teacher=TWO)
    asked = {node.name: node.needs.devices for node in made.nodes}
    assert asked == dict.fromkeys(asked, 1) | {"train_teacher": 2}


def test_the_number_of_devices_is_in_the_key_and_one_is_as_none(tmp_path: Path) -> None:
    site = {"cpu_slots": 2}
    without, one, two = (
        plan(tmp_path, site, distill=given).node("distill").parts for given in ({}, {"fit": {"devices": 1}}, TWO)
    )
    assert without == one != two
    assert "'devices'" not in str(one)


@pytest.mark.parametrize(
    ("site", "have"),
    [
        ({}, "1 CPU slot; set KDQ_CPU_SLOTS=2"),
        ({"device": "cuda:0"}, "cuda:0; name more of them in KDQ_DEVICES"),
    ],
)
def test_more_devices_than_there_are_are_refused_by_the_plan(site: dict[str, Any], have: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, site, distill=TWO)
    assert str(caught.value) == (
        f"stage 'distill' asks for 2 devices, but this site has {have}, or lower 'devices' in the stage's 'fit'"
    )


def test_qat_on_several_devices_is_refused() -> None:
    with pytest.raises(ValueError, match="QAT runs on one device, because its observers measure whole batches"):
        Recipe.model_validate({"name": "x", "workload": "digits", "quantize": TWO})


@pytest.mark.parametrize(
    ("device", "share", "asked", "limited"),
    [("cuda:0", 0.5, None, [0.5]), ("cuda:0", 0.5, 0.25, [0.25]), ("cuda:0", 1.0, None, []), ("cpu", 0.5, None, [])],
)
def test_torch_may_allocate_the_stages_share_of_a_gpu_and_no_more(
    device: str, share: float, asked: float | None, limited: list[float], tmp_path: Path, monkeypatch: Any
) -> None:
    found: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", found.append)
    monkeypatch.setattr("kdq_core.training.backend.plain_torch", lambda _threads: None)

    class Sharing(Distill):
        needs = Needs(memory=asked)

    class Asking:
        stage = Sharing()

    with _own_process(Asking(), Site(home=tmp_path, device=device, gpu_share=share), tmp_path):  # type: ignore[arg-type]
        assert found == limited
