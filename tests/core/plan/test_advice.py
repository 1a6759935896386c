"""What a plan says of a budget, of a quantizer that KDQ chooses, and of recipes that are known to be poor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdq_core.plan.advice import hints, narrow, nothing_to_teach
from kdq_core.plan.plan import Plan, asked_of, make_plan
from kdq_core.plugins.budget import shared_schedule
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import Checkpoint, EpochRecord, Gain

CATALOG = Catalog.load()
PLAIN = {"use": "digits", "options": {"augment": False}}


def recipe_of(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "x", "workload": PLAIN, **sections})


def plan_of(home: Path, **sections: Any) -> Plan:
    return make_plan(recipe_of(**sections), Site(home=home), CATALOG)


def hints_of(**sections: Any) -> list[str]:
    return list(hints(asked_of(recipe_of(**sections), Site(home=Path()), CATALOG)))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, (13, 3, False)),
        ({"budget": {"epochs": 16}}, (16, 3, False)),
        ({"budget": {"epochs": 2}}, (2, 1, False)),
        ({"quantize": {"weights": 4}}, (13, 3, True)),
        ({"quantize": {"control": True}}, (13, 3, True)),
        ({"quantize": {"use": "lsq"}, "budget": {"epochs": 8}}, (8, 3, True)),
        ({"quantize": {"use": "static"}, "budget": {"epochs": 8}}, (8, 0, False)),
        ({"quantize": {"use": "lsq"}}, None),
        (
            {"stages": ["train_teacher", "cache_teacher", "distill", {"use": "distill", "name": "again"}, "quantize"]},
            None,
        ),
        ({"stages": ["distill", "read_student", "quantize"]}, None),
        ({"stages": ["distill", "place", "quantize"]}, (13, 3, False)),
        ({"stages": ["quantize", "distill"]}, None),
    ],
)
def test_distill_and_quantize_share_a_schedule_under_a_budget_or_if_kdq_chooses(
    sections: dict[str, Any], expected: tuple[int, int, bool] | None
) -> None:
    found = shared_schedule(asked_of(recipe_of(**sections), Site(home=Path()), CATALOG))
    assert (found and (found.epochs, found.tail, found.stops)) == expected


def test_the_keys_hold_the_schedule_and_the_code_of_each_quantizer_to_choose_among(tmp_path: Path) -> None:
    usual, longer = plan_of(tmp_path), plan_of(tmp_path, budget={"epochs": 20})
    for stage in ("distill", "quantize"):
        assert usual.node(stage).parts["others"] == {"schedule": {"epochs": 13, "tail": 3, "stops": False}}
        assert longer.node(stage).parts["others"] == {"schedule": {"epochs": 20, "tail": 3, "stops": False}}
    code = usual.node("export").parts["code"]
    assert isinstance(code, dict)
    assert {name for name in code if name.startswith("quantizer")} == {
        "quantizer auto", "quantizer static", "quantizer minmax-qat",
    }  # fmt: skip
    named = plan_of(tmp_path, quantize={"use": "minmax-qat"})
    assert "others" not in named.node("distill").parts


@pytest.mark.parametrize(
    ("sections", "note"),
    [
        ({"budget": {"epochs": 9}, "distill": {"fit": {"epochs": 8}}},
         "'distill.fit.epochs' does nothing, since 'budget' has the epochs"),
        ({"quantize": {"fit": {"learning_rate": 1e-3, "batch_size": 9}}},
         "'batch_size', 'learning_rate' of 'quantize.fit' do nothing, since a quantizer trains in the last epochs of "
         "'distill.fit'"),
        ({"budget": {"epochs": 3}}, "'quantize.fit.epochs' is 2, not 3, since one epoch at least is in float"),
        ({"quantize": {"weights": 4}},
         "the float student stops after 10 of 13 epochs, and its quantizer trains the others"),
        ({"budget": {"epochs": 9}, "student": {"source": "checkpoint", "file": "x"}, "stages": ["quantize"]},
         "'budget' does nothing, since no stage quantizes the student of one 'distill' as that gave it"),
        ({}, ""),
    ],
)  # fmt: skip
def test_a_plan_notes_what_a_shared_schedule_leaves_without_effect(
    sections: dict[str, Any], note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"x": torch.zeros(1)}, "x")
    assert note in plan_of(tmp_path, **sections).note
    if not note:
        assert plan_of(tmp_path).note == ""


CHOOSES = (
    "quantizer 'auto' calibrates with 'static', and trains the last 3 of 13 epochs with 'minmax-qat' only if that "
    "loses too much on the validation split"
)


def test_hints_say_how_the_quantizer_is_chosen() -> None:
    assert hints_of() == [CHOOSES]
    assert hints_of(quantize={"weights": 4}) == [
        "quantizer 'auto' trains the last 3 of 13 epochs with 'lsq' at once, since 4 bits are few"
    ]
    assert hints_of(quantize={"use": "static"}) == []


def test_hints_warn_of_augmentation_with_few_epochs_and_of_few_views() -> None:
    augmented: Any = {"workload": "digits", "quantize": {"use": "static"}}
    few, views = hints_of(**augmented)
    assert few == (
        "the training samples are augmented, and the student has 10 epochs: on Fashion-MNIST a student of 15 epochs "
        "was 0.9 to 1.0 points better without; train for 30 or more, or switch it off ('augment')"
    )
    assert views == (
        "4 augmented views are kept, and the student has 10 epochs, so it sees each view 3 times; teacher: {cache: "
        "{views: 10}} gives each epoch its own"
    )
    enough = {"distill": {"fit": {"epochs": 30}}, "teacher": {"cache": {"views": 30}}}
    assert hints_of(**augmented, **enough) == []


def test_a_teacher_that_is_no_better_has_nothing_to_teach() -> None:
    def watched(slot: str, top1: float, **more: Any) -> Checkpoint:
        history = (EpochRecord(epoch=1, values={"validation/top1": top1}),)
        return Checkpoint(slot=slot, weights="w", parameters=1, history=history, **more)

    teacher = watched("teacher", 0.9)
    assert list(nothing_to_teach(teacher, watched("student", 0.89))) == []
    assert list(nothing_to_teach(teacher, watched("student", 0.91))) == [
        "nothing to teach: the teacher has 90.0 % top-1 on the validation split and its student 91.0 %; a better "
        "teacher, or none ('distill: {control: true}' shows the student alone)"
    ]
    gain = Gain(metric="top1", taught=0.9, control=0.91, difference=-0.01, low=-0.03, high=0.01, samples=9)
    assert list(nothing_to_teach(teacher, watched("student", 0.89, gains=(gain,)))) == [
        "nothing to teach: alone the student has 91.0 % top-1, with the teacher 90.0 %; a better teacher, or none"
    ]


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (
            [(16, 1, 3, 3), (10, 400)],
            "the student's widest convolution has 16 channels: under 32, int8 gains little time",
        ),
        ([(64, 32, 3, 3)], ""),
        ([(4000, 64), (256, 64)], "the student's layers have at most 64 features: under 128, int8 gains little time"),
        ([(256, 256)], ""),
    ],
)
def test_a_narrow_student_is_told_by_the_shapes_of_its_weights(
    shapes: list[tuple[int, ...]], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "w.safetensors"
    save_file({f"w{n}": torch.zeros(shape) for n, shape in enumerate(shapes)}, file)
    assert " ".join(narrow(file)).startswith(said)
    assert bool(list(narrow(file))) is bool(said)
