"""What a stage declares is what its key holds, also where two stages meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kdq_core.api import Checkpoint, FitSpec, Needs, PluginError, Port, Reads, RecipeError, Record, Section, Stage
from kdq_core.plan.plan import make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.code_version import Code
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.training.losses import hard_loss

FIT = {"epochs": 1, "batch_size": 32}
BODIES: dict[str, Callable[[Any], Any]] = {}
READS: dict[str, Any] = {}


class Toy(Stage):
    gives = "student"
    record = Checkpoint
    environment: ClassVar[tuple[str, ...]] = ("KDQ_TEST_VARIABLE",)

    def inputs(self, asked: Any) -> Any:
        return {"report": Port(slot="report", optional=True)}

    def reads(self, asked: Any, wired: Any) -> Reads:
        sections = (Section(name="workload"), Section(name="student", only=("factory",)))
        return Reads(**{"sections": sections, "plugins": ("workload",), **READS})

    def run(self, work: Any) -> Record:
        given: Record = BODIES["run"](work)
        return given


class OnTheCpu(Toy):
    needs = Needs(device="cpu")


class SameTeacher(Stage):
    gives = "teacher"
    record = Checkpoint

    def inputs(self, asked: Any) -> Any:
        return {"teacher": Port(slot="teacher", record=Checkpoint)}

    def reads(self, asked: Any, wired: Any) -> Reads:
        members = Section(name="teacher", only=("members", "inputs", "combine"), held={})
        return Reads(sections=(Section(name="workload"), members), plugins=("workload",))

    def run(self, work: Any) -> Record:
        given: Record = work.checkpoint(work.model("teacher"))
        return given


@pytest.fixture
def toys(tiny: Catalog, with_stages: Any, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The tiny workload, and the stages above; `BODIES` and `READS` say what they do."""
    monkeypatch.setitem(BODIES, "run", lambda work: work.checkpoint(work.workload.student()))
    catalog: Catalog = with_stages(tiny, **{"toy": Toy, "on-the-cpu": OnTheCpu, "same-teacher": SameTeacher})
    return catalog


def planned(catalog: Catalog, home: Path, **sections: Any) -> Any:
    recipe = Recipe.model_validate({"name": "x", "workload": "digits", **sections})
    return make_plan(recipe, Site(home=home, device=sections.pop("device", "cpu")), catalog)


def test_two_fits_of_one_stage_do_not_take_each_other_for_a_fit_that_was_killed(
    stages_of: Any, toys: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[list[float]] = []

    def twice(work: Any) -> Record:
        for rate in (1e-3, 1e-9):  # the second learns nothing
            work.seeded("toy")
            model = work.workload.student()
            spec = FitSpec(epochs=3, batch_size=32, learning_rate=rate, warmup=0.0)
            history = work.fit(model, hard_loss(work.workload), spec)
            losses.append([value for epoch in history for name, value in epoch.values.items() if "train/" in name])
        return work.checkpoint(model, history)  # type: ignore[no-any-return]

    monkeypatch.setitem(BODIES, "run", twice)
    record = stages_of(tmp_path, toys, workload="digits", stages=["toy"]).stage("toy").record
    assert losses[0] != losses[1]
    assert "2/train/loss" in record.history[0].values


def test_a_stage_that_computes_on_the_cpu_is_shown_the_cpu(stages_of: Any, toys: Catalog, tmp_path: Path) -> None:
    run = stages_of(tmp_path, toys, workload="digits", stages=["toy", {"use": "on-the-cpu"}])
    run.site = run.site.model_copy(update={"device": "cuda:0"})
    assert [run.work(name, tmp_path).site.device for name in ("toy", "on-the-cpu")] == ["cuda:0", "cpu"]


def test_a_teacher_that_a_stage_gives_anew_is_still_combined_as_the_recipe_says(
    stages_of: Any, toys: Catalog, tmp_path: Path
) -> None:
    def digest(combine: str) -> str:
        run = stages_of(
            tmp_path / combine, toys, workload="digits", stages=["train_teacher", "same-teacher"],
            teacher={"fit": FIT, "members": [{}, {"source": "student"}], "combine": combine},
        )  # fmt: skip
        run.stage("train_teacher")
        return str(run.stage("same-teacher").digest)

    assert digest("mean") != digest("confidence")


def test_a_variable_that_a_plugin_reads_is_in_the_key(
    toys: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [planned(toys, tmp_path, stages=["toy"]).node("toy").key({})]
    for value in ("one", "two"):
        monkeypatch.setenv("KDQ_TEST_VARIABLE", value)
        keys.append(planned(toys, tmp_path, stages=["toy"]).node("toy").key({}))
    assert len(set(keys)) == 3


class ComputesNothing(Toy):
    needs = Needs(device="none")


def test_code_that_was_edited_since_this_process_imported_it_is_refused(
    tiny: Catalog, with_stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, whole = with_stages(tiny, toy=Toy, less=ComputesNothing), type(tiny).code_of

    def plan(version: str) -> Any:
        def code_of(self: Catalog, entry: Any, **given: Any) -> Code:
            return Code(text=version, libraries={}) if entry.name in ("toy", "less") else whole(self, entry, **given)

        monkeypatch.setattr(type(catalog), "code_of", code_of)
        return planned(catalog, tmp_path, stages=["toy", "less"])

    assert plan("1").node("less").parts["code"]["stage less"] == "1"
    with pytest.raises(PluginError) as caught:
        plan("2")
    assert str(caught.value) == (
        "stage 'less' runs in this process, which imported its code before that was edited; start KDQ in a new process"
    )


def test_a_house_plugin_has_one_key_with_and_without_its_distribution(toys: Catalog, tmp_path: Path) -> None:
    plans = [
        planned(toys, tmp_path, stages=[f"{kdq}train_teacher"], quantize={"use": f"{kdq}lsq"}, target=f"{kdq}openvino")
        for kdq in ("", "kdq/")
    ]
    assert plans[0].node("train_teacher").parts == plans[1].node("train_teacher").parts
    assert plans[0].recipe == plans[1].recipe


@pytest.mark.parametrize(
    ("reads", "error", "text"),
    [
        ({"sections": (Section(name="prune"),)}, PluginError,
         "a stage's reads() names the section 'prune', but a recipe has: distill, evaluate, gates, quantize, register, "
         "student, target, teacher, workload"),
        ({"sections": (Section(name="quantize", only=("wieghts",)),)}, PluginError,
         "a stage's reads() names the field 'wieghts' of the section 'quantize'; did you mean 'weights'? but it has: "),
        ({"sections": (Section(name="gates", only=("metric",)),)}, PluginError,
         "a stage's reads() names fields of the section 'gates', which is a list; name the whole section: "
         "Section(name='gates')"),
        ({"libraries": ("no-such-library",)}, PluginError,
         "a stage's reads() names the library 'no-such-library', which is not installed; install it, or write the name "
         "of its distribution as pip shows it"),
        ({"files": ("not/there.txt",)}, RecipeError,
         "stage 'toy' reads the file 'not/there.txt', which is not there, "),
    ],
)  # fmt: skip
def test_what_reads_names_must_be_there(
    reads: dict[str, Any], error: type[Exception], text: str, toys: Catalog, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(f"{__name__}.READS", reads)
    with pytest.raises(error) as caught:
        planned(toys, tmp_path, stages=["toy"])
    assert str(caught.value).startswith(text)


def test_a_field_in_another_form_is_in_the_key_too(
    toys: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One distiller in `losses` is resolved to what `use` would be, and must not leave the key empty."""
    monkeypatch.setattr(f"{__name__}.READS", {"sections": (Section(name="distill", only=("losses",)),), "plugins": ()})
    keys = {
        planned(toys, tmp_path, stages=["toy"], distill={"losses": [{"use": use}]}).node("toy").key({})
        for use in ("logit-kd", "dkd")
    }
    assert len(keys) == 2


def refused(stages_of: Any, toys: Catalog, home: Path) -> str:
    with pytest.raises(PluginError) as caught:
        stages_of(home, toys, workload="digits", stages=["toy"]).stage("toy")
    return str(caught.value)


def test_a_plugin_whose_section_is_not_read_cannot_be_used(
    stages_of: Any, toys: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.READS", {"sections": ()})
    assert refused(stages_of, toys, tmp_path) == (
        "stage 'toy' uses the recipe's workload, whose options are in the section 'workload', which its reads() does "
        "not name; name it there, so that the stage's key holds them"
    )


def test_an_optional_input_that_is_not_there_is_asked_for_first(
    stages_of: Any, toys: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BODIES, "run", lambda work: work.input("report"))
    assert refused(stages_of, toys, tmp_path) == (
        "stage 'toy' reads its optional input 'report', which no stage of this recipe gives; ask work.has('report') "
        "first"
    )


def test_a_record_that_names_a_file_which_is_not_there_is_refused(
    stages_of: Any, toys: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BODIES, "run", lambda _work: Checkpoint(slot="student", weights="w.safetensors", parameters=1))
    assert refused(stages_of, toys, tmp_path) == (
        "the record of stage 'toy' names the file 'w.safetensors', which is not in the stage's draft; write it to "
        "work.draft, or correct the record"
    )
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_quantized_student_and_a_student_that_was_trained_after_it_do_not_share_a_table(
    toys: Catalog, tmp_path: Path
) -> None:
    stages = ["train_teacher", "distill", "quantize", {"use": "distill", "name": "again"}, "export", "evaluate"]
    with pytest.raises(RecipeError) as caught:
        planned(toys, tmp_path, stages=stages)
    assert str(caught.value) == (
        "stage 'export' reads the 'student' that stage 'again' gives, but stage 'quantize' made its 'quantized' of the "
        "one that stage 'distill' gave; list 'quantize' behind 'again'"
    )
