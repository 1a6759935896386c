import re
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import PluginError
from kdq_core.plan.forecast import forecast
from kdq_core.plan.plan import Plan, make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import FitSpec, Recipe, Site
from kdq_core.store.records import Checkpoint
from kdq_core.store.store import Store
from kdq_workloads.digits import Digits

STAGES = ["train_teacher", "cache_teacher", "distill", "place", "quantize", "export", "evaluate", "register"]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load()


def plan(catalog: Catalog, home: Path, site: dict[str, Any] | None = None, **recipe: Any) -> Plan:
    asked = {"name": "digits", "workload": "digits", **recipe}
    return make_plan(Recipe.model_validate(asked), Site(home=home, **(site or {})), catalog)


def stored(made: Plan, store: Store) -> dict[str, str]:
    """Pretend that every stage ran; gives the digests."""
    digests: dict[str, str] = {}
    for node in made.nodes:
        key, parts = node.key(digests), node.full_parts(digests)
        entry = store.lookup(key)
        if entry is None:
            with store.draft(key) as draft:
                (draft / "weights").write_text(f"{node.name} of {key}")
                record = Checkpoint(slot="teacher", weights="weights", parameters=1)
                entry = store.commit(draft, stage=node.name, key=key, parts=parts, record=record)
        digests[node.name] = entry.digest
    return digests


def told(made: Plan, store: Store) -> dict[str, tuple[str, str]]:
    return {line.stage: (line.state, line.why) for line in forecast(made, store)}


def test_a_new_plan_runs_everything_in_order(catalog: Catalog, tmp_path: Path) -> None:
    made = plan(catalog, tmp_path)
    assert [node.name for node in made.nodes] == STAGES
    assert told(made, Store(tmp_path)) == dict.fromkeys(STAGES, ("run", "never run before"))


def test_a_plan_that_ran_is_cached_whole(catalog: Catalog, tmp_path: Path) -> None:
    store = Store(tmp_path)
    stored(plan(catalog, tmp_path), store)
    assert told(plan(catalog, tmp_path), store) == dict.fromkeys(STAGES, ("cached", ""))


def test_another_option_of_an_evaluator_runs_evaluation_and_nothing_above_it(catalog: Catalog, tmp_path: Path) -> None:
    store = Store(tmp_path)
    stored(plan(catalog, tmp_path), store)
    evaluate = ["quality", "size", {"use": "latency", "options": {"batch_size": 2}}, "coverage", "parity"]
    lines = told(plan(catalog, tmp_path, evaluate=evaluate), store)
    assert [lines[name] for name in STAGES[:5]] == [("cached", "")] * 5
    assert lines["evaluate"][0] == "run"
    assert lines["evaluate"][1] == "recipe.evaluate.latency.batch_size changed"
    assert lines["register"] == ("run", "after evaluate")


def test_a_miss_names_the_part_that_changed(catalog: Catalog, tmp_path: Path) -> None:
    store = Store(tmp_path)
    stored(plan(catalog, tmp_path), store)
    lines = told(plan(catalog, tmp_path, distill={"options": {"temperature": 2}}), store)
    assert lines["train_teacher"] == ("cached", "")
    assert lines["distill"] == ("run", "recipe.distill.options.temperature changed")
    assert lines["quantize"] == ("run", "recipe.distill.options.temperature changed; after distill")
    assert lines["export"] == ("run", "after distill, quantize")
    threads = told(plan(catalog, tmp_path, site={"threads": 7}), store)
    assert threads["train_teacher"] == ("run", "device.threads changed")
    assert told(plan(catalog, tmp_path, seed=5), store)["train_teacher"] == ("run", "seed changed")
    fit = {"epochs": 3, "batch_size": 7, "learning_rate": 0.5, "weight_decay": 0.5, "warmup": 0.5, "clip_norm": 7.0,
           "schedule": "constant"}  # fmt: skip
    many = told(plan(catalog, tmp_path, seed=5, distill={"use": "dkd", "fit": fit}), store)["distill"][1]
    assert many.count(" changed; ") == 8
    assert re.search(r" changed; \d+ more; after train_teacher", many)


def test_a_parent_with_the_same_result_leaves_its_children_cached(catalog: Catalog, tmp_path: Path) -> None:
    """The key holds the digest of the parent's content, not its key."""
    store = Store(tmp_path)
    digests = stored(plan(catalog, tmp_path), store)
    other = plan(catalog, tmp_path, teacher={"fit": {"epochs": 11}})
    node = other.node("train_teacher")
    entry = store.get(plan(catalog, tmp_path).node("train_teacher").key({}))
    with store.draft(node.key({})) as draft:
        (draft / "weights").write_bytes(entry.file("weights").read_bytes())
        again = store.commit(
            draft, stage="train_teacher", key=node.key({}), parts=node.full_parts({}), record=entry.record
        )
    assert again.digest == digests["train_teacher"]
    assert told(other, store) == dict.fromkeys(STAGES, ("cached", ""))


def test_a_damaged_entry_is_told_before_the_run(catalog: Catalog, tmp_path: Path) -> None:
    store, made = Store(tmp_path), plan(catalog, tmp_path)
    stored(made, store)
    (store.folder(made.node("train_teacher").key({})) / "weights").write_text("changed")
    state, why = told(made, store)["train_teacher"]
    assert state == "damaged"
    assert "is damaged" in why
    assert why.endswith("; KDQ computes it anew")


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"seed": 1}, "train_teacher"),
        ({"workload": {"use": "digits", "options": {"teacher_width": 32}}}, "train_teacher"),
        ({"workload": {"use": "digits", "options": {"student_width": 32}}}, "distill"),
        ({"teacher": {"fit": FitSpec(epochs=3)}}, "train_teacher"),
        ({"teacher": {"cache": {"views": 3}}}, "cache_teacher"),
        ({"teacher": {"cache": {"seed": 3}}}, "cache_teacher"),
        ({"teacher": {"cache": {"form": "fp32"}}}, "cache_teacher"),
        ({"teacher": {"cache": {"top_k": 3}}}, "cache_teacher"),
        ({"distill": {"fit": {"batch_size": 32}}}, "distill"),
        ({"quantize": {"fit": {"epochs": 1}}}, "distill"),
        ({"quantize": {"fit": {"batch_size": 32}}}, "quantize"),
        ({"quantize": {"freeze_observers": 0.1}}, "quantize"),
        ({"target": {"use": "onnxruntime-cpu", "options": {"quantize_outputs": False}}}, "place"),
        ({"gates": []}, "register"),
        ({"register": {"name": "other"}}, "register"),
    ],
)
def test_each_section_changes_the_key_of_the_stages_that_read_it(
    catalog: Catalog, tmp_path: Path, change: dict[str, Any], first: str
) -> None:
    digests = dict.fromkeys(STAGES, "0" * 64)
    base, other = plan(catalog, tmp_path), plan(catalog, tmp_path, **change)
    moved = [name for name in STAGES if base.node(name).key(digests) != other.node(name).key(digests)]
    assert moved
    assert moved[0] == first


def test_an_export_without_the_teacher_does_not_depend_on_it(catalog: Catalog, tmp_path: Path) -> None:
    stages = [{"use": one, "options": {"beside": ["student"]}} if one == "export" else one for one in STAGES]
    whole, without = plan(catalog, tmp_path), plan(catalog, tmp_path, stages=stages)
    assert whole.node("export").parents.keys() - without.node("export").parents.keys() == {"teacher"}
    assert [model.slot for model in whole.models] == ["teacher", "student", "int8"]
    assert [model.slot for model in without.models] == ["student", "int8"]


def test_a_name_or_a_retry_is_no_reason_to_train_again(catalog: Catalog, tmp_path: Path) -> None:
    digests = dict.fromkeys(STAGES, "0" * 64)
    base, other = plan(catalog, tmp_path), plan(catalog, tmp_path, name="other", retry={"attempts": 1})
    assert [n for n in STAGES if base.node(n).key(digests) != other.node(n).key(digests)] == ["register"]


def test_kept_outputs_serve_every_student_and_every_seed_of_it(catalog: Catalog, tmp_path: Path) -> None:
    """The recipe's seed comes in through the teacher alone, and a limit changes no row."""
    digests = dict.fromkeys(STAGES, "0" * 64)
    base = plan(catalog, tmp_path).node("cache_teacher").key(digests)
    for change in (
        {"seed": 5},
        {"workload": {"use": "digits", "options": {"student_width": 32}}},
        {"distill": {"use": "dkd"}},
        {"teacher": {"fit": {"epochs": 3}}},
        {"teacher": {"cache": {"limit_gb": 1}}},
    ):
        assert plan(catalog, tmp_path, **change).node("cache_teacher").key(digests) == base


def test_a_miss_of_the_kept_outputs_is_told_like_any_other(catalog: Catalog, tmp_path: Path) -> None:
    store = Store(tmp_path)
    stored(plan(catalog, tmp_path), store)
    lines = told(plan(catalog, tmp_path, teacher={"cache": {"views": 3}}), store)
    assert lines["train_teacher"] == ("cached", "")
    assert lines["cache_teacher"] == ("run", "recipe.teacher.cache.views changed")
    assert lines["distill"] == ("run", "after cache_teacher")


def test_without_a_cache_the_students_stand_on_the_teacher_and_on_the_seed_of_the_views(
    catalog: Catalog, tmp_path: Path
) -> None:
    off = plan(catalog, tmp_path, teacher={"cache": {"enabled": False}})
    assert [node.name for node in off.nodes] == [name for name in STAGES if name != "cache_teacher"]
    assert off.node("distill").parents == {"teacher": "train_teacher"}
    assert off.node("quantize").parents == {"teacher": "train_teacher", "student": "distill", "placement": "place"}
    digests = dict.fromkeys(STAGES, "0" * 64)
    other = plan(catalog, tmp_path, teacher={"cache": {"enabled": False, "seed": 1}})
    moved = [n.name for n in off.nodes if n.key(digests) != other.node(n.name).key(digests)]
    assert moved == ["distill", "quantize"]


def test_a_workload_that_takes_no_view_is_told_before_the_run(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(self: Digits, split: str, *, batch_size: int, seed: int = 0, epoch: int = 0) -> list[Any]:
        return []

    monkeypatch.setattr(Digits, "batches", batches)
    with pytest.raises(PluginError) as caught:
        plan(catalog, tmp_path)
    assert str(caught.value) == (
        "workload 'digits' cannot be asked for the same view of a sample twice, so a teacher's outputs cannot be kept: "
        "its batches() takes no 'view'; add `view: View | None = None`, which decides the augmentation, or write "
        "teacher: {cache: {enabled: false}}"
    )
    assert "cache_teacher" not in [n.name for n in plan(catalog, tmp_path, teacher={"cache": {"enabled": False}}).nodes]


@pytest.mark.parametrize(
    ("cache", "losses", "note"),
    [
        ({}, ["logit-kd"], ""),
        ({"top_k": 3, "form": "fp32"}, ["logit-kd"], ""),
        ({"features": True}, ["fitnet"], ""),
        ({"enabled": False}, ["fitnet"], ""),
        ({"features": True}, ["logit-kd"],
         "'teacher.cache.features' keeps nothing, since no distiller compares features"),
        ({}, ["fitnet"],
         "the teacher runs beside the students, since 'fitnet' compares features; teacher: {cache: {features: true}} "
         "keeps them"),
        ({"enabled": False, "top_k": 3}, ["logit-kd"],
         "the teacher's outputs are not kept, so 'top_k' of 'teacher.cache' does nothing"),
        ({"enabled": False, "views": 2}, ["logit-kd"],
         "the teacher's outputs are not kept, so 'views' of 'teacher.cache' does nothing"),
        ({"enabled": False, "top_k": 3, "form": "fp32"}, ["logit-kd"],
         "the teacher's outputs are not kept, so 'form', 'top_k' of 'teacher.cache' do nothing"),
        ({}, ["logit-kd", "fitnet", "rkd"],
         "the teacher runs beside the students, since 'fitnet', 'rkd' compare features; teacher: {cache: {features: "
         "true}} keeps them"),
    ],
)  # fmt: skip
def test_what_of_the_cache_has_no_effect_is_told(
    cache: dict[str, Any], losses: list[str], note: str, tmp_path: Path
) -> None:
    recipe = {"name": "x", "workload": "digits", "teacher": {"cache": cache}, "distill": {"losses": losses}}
    plan = make_plan(Recipe.model_validate(recipe), Site(home=tmp_path), Catalog.load())
    assert plan.note == note
    kept = [node.name for node in plan.nodes if node.name == "cache_teacher"]
    assert bool(kept) == (cache.get("enabled", True) and not ("fitnet" in losses and "features" not in cache))


def test_a_precision_that_no_teacher_takes_is_told(tmp_path: Path) -> None:
    onnx = tmp_path / "teacher.onnx"
    onnx.write_bytes(b"")
    members = [{"source": "onnx", "file": str(onnx)}]
    mixed = [*members, {}]
    for precision, several, by, told in (
        ("bf16", members, "teachers", True),
        ("auto", members, "teachers", False),
        ("bf16", mixed, "teachers", False),
        ("bf16", members, "student", False),
    ):
        teacher = {"precision": precision, "members": several}
        sections = {"teacher": teacher, "quantize": {"taught_by": by}}
        recipe = Recipe.model_validate({"name": "x", "workload": "digits", **sections})
        note = make_plan(recipe, Site(home=tmp_path), Catalog.load()).note
        wanted = "'teacher.precision' does nothing, since an ONNX model answers in the precision of its file"
        assert (wanted in note) is told


@pytest.mark.parametrize(
    ("teacher", "fuse", "note"),
    [
        ({"fit": {"epochs": 3}, "members": ["onnx"]}, False,
         "'teacher.fit' does nothing, since no teacher is trained here"),
        ({"fit": {"epochs": 3}, "members": ["onnx", {}]}, False, ""),
        ({"members": ["onnx"]}, False, ""),
        ({"combine": "confidence"}, False, "'teacher.combine' does nothing, since there is one teacher"),
        ({"combine": "confidence", "members": [{}, {}]}, False, ""),
        ({"members": [{"weight": 2}]}, False,
         "the 'weight' in 'teacher.members' does nothing, since there is one teacher"),
        ({"members": [{"weight": 2}, {}]}, False, ""),
        ({"cache": {"views": 1}}, True,
         "'distill.fuse_views' does nothing, since one view of each sample is kept; more come by teacher: {cache: "
         "{views: 4}}"),
        ({"cache": {"views": 1}}, False, ""),
        ({}, True, ""),
    ],
)  # fmt: skip
def test_what_of_the_teacher_has_no_effect_is_told_also_when_the_recipe_comes_from_a_schedule(
    catalog: Catalog, tmp_path: Path, teacher: dict[str, Any], fuse: bool, note: str
) -> None:
    onnx = tmp_path / "teacher.onnx"
    onnx.write_bytes(b"")
    members = [{"source": "onnx", "file": str(onnx)} if m == "onnx" else m for m in teacher.get("members", [{}])]
    made = plan(catalog, tmp_path, teacher={**teacher, "members": members}, distill={"fuse_views": fuse}, gates=[])
    assert made.note == note
    dumped = Recipe.model_validate(made.recipe.model_dump(mode="json"))
    assert make_plan(dumped, Site(home=tmp_path), catalog).note == note


def test_what_no_teacher_reads_is_not_in_its_key(catalog: Catalog, tmp_path: Path) -> None:
    onnx = tmp_path / "teacher.onnx"
    onnx.write_bytes(b"")

    def key(**teacher: Any) -> str:
        return plan(catalog, tmp_path, teacher=teacher).node("train_teacher").key({})

    member: dict[str, Any] = {"source": "onnx", "file": str(onnx)}
    assert key(members=[member], fit={"epochs": 3}) == key(members=[member])
    assert key(members=[member], combine="confidence") == key(members=[member])
    assert key(members=[member, {}], fit={"epochs": 3}) != key(members=[member, {}])
    assert key(members=[member, {}], combine="confidence") != key(members=[member, {}])
    assert key(fit={"epochs": 3}) != key()


@pytest.mark.parametrize(
    ("transfer", "epochs", "note"),
    [
        ({}, 2, ""),
        ({"hold": 0.75}, 4, ""),
        ({}, 1, "in all of one round, so they stay as they came; more epochs, or"),
        ({"rounds": 1}, 8, "in all of one round, so they stay as they came; more rounds, or"),
        ({"hold": 0.8, "rounds": 4}, 8, "in all of 4 rounds, so they stay as they came; more rounds, or"),
    ],
)  # fmt: skip
def test_parameters_that_never_train_are_told(
    catalog: Catalog, tmp_path: Path, transfer: dict[str, Any], epochs: int, note: str
) -> None:
    found = plan(catalog, tmp_path, distill={"transfer": transfer, "fit": {"epochs": epochs}}).note
    assert found == (note and f"'distill.transfer' holds some parameters {note} a smaller 'hold', train them all")


def test_rounds_that_there_are_no_epochs_for_are_told(catalog: Catalog, tmp_path: Path) -> None:
    for rounds, note in ((3, "'distill.transfer' has 2 of 3 rounds, since a round is an epoch at least"), (2, "")):
        asked = {"transfer": {"rounds": rounds}, "fit": {"epochs": 2}}
        assert plan(catalog, tmp_path, distill=asked).note == note


NO_TEACHER = "no teacher is measured beside the int8 file, so the default gates do not compare with one; "


@pytest.mark.parametrize(
    ("sections", "note"),
    [
        ({"stages": ["train_teacher"]}, ""),
        ({"stages": ["train_teacher", "distill"], "teacher": {"cache": {"top_k": 3}}},
         "'teacher.cache' does nothing, since the recipe does not list the stage 'cache_teacher'"),
        ({"stages": ["train_teacher", "distill"], "distill": {"fuse_views": True}},
         "'distill.fuse_views' does nothing, since the recipe does not list the stage 'cache_teacher'"),
        ({"stages": ["train_teacher", "distill"], "quantize": {"bias_correction": True}},
         "'quantize' does nothing, since no stage of the recipe reads it"),
        ({"stages": ["train_teacher"], "register": {"name": "other"}, "target": {"use": "onnxruntime-cpu", "options":
          {"quantize_outputs": False}}, "evaluate": ["size"]},
         "'target' does nothing, since no stage of the recipe reads it; 'evaluate' does nothing, since no stage of the "
         "recipe reads it; 'register' does nothing, since no stage of the recipe reads it"),
        ({"stages": ["train_teacher"], "gates": [{"metric": "top1", "at_least": 0.9}]},
         "'gates' do nothing, since no stage of the recipe measures a model; 'evaluate' would"),
        ({"student": {"source": "checkpoint", "file": "net.safetensors"}, "stages": ["quantize", "export", "evaluate"],
          "quantize": {"use": "static"}, "teacher": {"fit": {"epochs": 3}}, "distill": {"use": "dkd"}},
         f"{NO_TEACHER}'teacher' does nothing, since no stage of the recipe reads it; 'distill' does nothing, since no "
         "stage of the recipe reads it"),
    ],
)  # fmt: skip
def test_sections_that_no_stage_reads_are_told_also_when_the_recipe_comes_from_a_schedule(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], note: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.safetensors").touch()
    made = plan(catalog, tmp_path, **sections)
    assert made.note == note
    again = make_plan(Recipe.model_validate_json(made.recipe.model_dump_json(by_alias=True)), made.site, catalog)
    assert again.note == note
