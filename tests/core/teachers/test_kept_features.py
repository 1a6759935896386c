"""Features of the teacher, kept beside its logits and read by the students that are compared with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from kdq_core.errors import RecipeError, StageError
from kdq_core.recipe.teacher import CacheSpec
from kdq_core.store.records import TeacherOutputs
from kdq_core.store.store import Store
from kdq_core.teachers import build as building
from kdq_core.teachers.build import build_outputs
from kdq_core.teachers.source import CachedTeacher, OnlineTeacher
from kdq_core.tensors import Batch, Outputs, View

pytestmark = pytest.mark.isa

VIEWS = 2
FIT = {"epochs": VIEWS, "batch_size": 32, "learning_rate": 0.02}
LOWER = {"schedule": "linear", "start": 2.0, "end": 1.0}
LOSSES = ["logit-kd", {"use": "fitnet", "options": {"beta": 10.0}}, {"use": "rkd", "weight": LOWER}]
STAGES = ("train_teacher", "cache_teacher", "distill", "quantize")


@pytest.fixture(scope="module")
def viewed(tiny, installed):
    """The catalog with the tiny workload, whose samples look a little different in each view."""

    class Viewed(type(tiny.build("workload", "digits", {}))):
        def batches(self, split, *, batch_size, seed=0, epoch=0, view=None):
            noise = torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(view.number if view else 0))
            for batch in super().batches(split, batch_size=batch_size, seed=seed, epoch=epoch):
                (x,) = batch.inputs
                yield replace(batch, inputs=(x + 0.3 * noise[batch.ids],)) if split == "train" else batch

    return installed(Viewed)


@pytest.fixture(scope="module")
def run_of(stages_of, viewed):
    """Makes a run of the tiny workload, with stages that have run."""

    def make(home, stages, losses=LOSSES, options=None, **cache):
        run = stages_of(
            home,
            viewed,
            workload={"use": "digits", "options": options or {}},
            teacher={"fit": FIT, "precision": "fp32", "cache": {"views": VIEWS, **cache}},
            distill={"fit": FIT, "losses": losses},
            quantize={"use": "minmax-qat", "fit": FIT},
        )
        for name in stages:
            run.stage(name)
        return run

    return make


@pytest.fixture(scope="module")
def kept(run_of, tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("kept"), STAGES, form="fp32", features=True)


@pytest.fixture(scope="module")
def half(run_of, tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("half"), STAGES, features=True)


@pytest.fixture(scope="module")
def online(run_of, tmp_path_factory):
    """The same with the teacher beside the students, which then see the same views."""
    return run_of(tmp_path_factory.mktemp("online"), ("train_teacher", "distill", "quantize"), enabled=False)


def losses(run, stage):
    """The training curves of a stage: all values of all epochs, by name."""
    values = [(name, value) for epoch in run.entries[stage].record.history for name, value in epoch.values.items()]
    names = dict.fromkeys(name for name, _ in values if name.startswith("train/"))
    return {name: [value for other, value in values if other == name] for name in names}


@pytest.mark.parametrize(("stage", "tolerance"), [("distill", 1e-3), ("quantize", 3e-2)])
def test_the_loss_curve_is_that_of_the_teacher_beside_the_student(kept, online, half, stage, tolerance):
    """In training with rounding, a value that is rounded the other way moves a whole step."""
    expected = losses(online, stage)
    assert {"train/fitnet/hint", "train/rkd/distance", "train/logit-kd/kd"} <= expected.keys()
    assert losses(kept, stage).keys() == losses(half, stage).keys() == expected.keys()
    for name, values in expected.items():
        assert losses(kept, stage)[name] == pytest.approx(values, rel=1e-6), name
        assert losses(half, stage)[name] == pytest.approx(values, rel=tolerance), name


@pytest.mark.parametrize("stage", ["distill", "quantize"])
def test_the_record_tells_which_layers_met_and_the_curves_what_was_scheduled(kept, stage):
    record = kept.entries[stage].record
    assert record.compared == dict.fromkeys(("fitnet", "rkd"), (("relu", "relu"), ("flat", "flat")))
    values = [{k: v for k, v in e.values.items() if k.startswith("schedule/")} for e in record.history]
    # steps 0 to 5 of 6, 3 in an epoch: what was in force in the last of each
    assert values == [{"schedule/rkd/weight": pytest.approx(1.6)}, {"schedule/rkd/weight": 1.0}]


def test_the_entry_holds_what_each_tapped_module_gives_in_each_view(kept, tmp_path):
    entry = kept.entries["cache_teacher"]
    assert isinstance(entry.record, TeacherOutputs)
    tensors = {tensor.name: tensor for tensor in entry.record.tensors}
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "logits": (3,), "features/relu": (8, 2, 2), "features/flat": (32,),
    }  # fmt: skip
    context = kept.work("distill", tmp_path)
    model = context.model("teacher")
    batch = next(iter(context.workload.batches("train", batch_size=48, seed=5, view=View(0, 1))))
    with torch.no_grad():
        said = nn.Sequential(model.conv, model.bn, model.relu)(*batch.inputs).numpy()
    tensor = tensors["features/relu"]
    rows = np.fromfile(entry.file(tensor.path), "<f4").reshape(VIEWS, 96, 8, 2, 2)
    np.testing.assert_allclose(rows[1, batch.ids.numpy()], said, rtol=1e-4, atol=1e-5)


def test_students_ask_the_teacher_for_two_samples_to_find_their_pairs_and_for_nothing_else(kept, tmp_path, monkeypatch):
    sizes = []
    asked = OnlineTeacher.__call__

    def counted(self, batch, *words):
        sizes.append(len(batch.ids))
        return asked(self, batch, *words)

    monkeypatch.setattr(OnlineTeacher, "__call__", counted)
    for stage in ("distill", "quantize"):
        draft = tmp_path / stage
        draft.mkdir()
        work = kept.work(stage, draft)
        work.wired.stage.run(work)
    assert set(sizes) == {2}


def test_the_key_holds_the_taps_where_features_are_kept_and_only_there(run_of, tmp_path):
    def node(losses, **options):
        run = run_of(tmp_path, (), losses, options.pop("options", None), **options)
        names = [node.name for node in run.plan.nodes]
        return run.plan.node("cache_teacher") if "cache_teacher" in names else None

    def taps(ours, theirs):
        return [{"use": "fitnet", "taps": [[ours, theirs]]}]

    assert node(LOSSES) is None
    plain = node(["logit-kd"])
    assert "features" not in plain.parts["recipe"]["teacher"]["cache"]
    assert node(["logit-kd"], features=True) == plain
    auto = node(LOSSES, features=True)
    assert auto.parts["recipe"]["teacher"]["cache"]["features"] == ["auto"]
    written = node(taps("conv", "bn"), features=True)
    assert written.parts["recipe"]["teacher"]["cache"]["features"] == ["bn"]
    assert node(taps("bn", "bn"), features=True) == written
    assert node(taps("conv", "conv"), features=True) != written


def test_the_students_options_are_in_the_key_where_its_shapes_decide_what_is_kept(stages_of, tmp_path):
    def key(width, taps):
        workload = {"use": "digits", "options": {"student_width": width}}
        distill = {"losses": [{"use": "fitnet", "taps": taps}]}
        run = stages_of(tmp_path, workload=workload, teacher={"cache": {"features": True}}, distill=distill)
        return run.plan.node("cache_teacher").key({"train_teacher": "a"})

    assert key(16, "auto") != key(32, "auto")
    assert key(16, [["bn", "bn"]]) == key(32, [["bn", "bn"]])


def test_taps_that_fit_nothing_are_told_before_anything_is_asked(run_of, tmp_path):
    wrong = [{"use": "fitnet", "taps": [["conv", "convolution"]]}]
    with pytest.raises(RecipeError, match=r"no module of the teacher \(Sequential\) matches the tap 'convolution'"):
        run_of(tmp_path, STAGES[:2], wrong, features=True)


def batches(view, size=16):
    ids = torch.randperm(48, generator=torch.Generator().manual_seed(view))
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(10 + view))
    for at in ids.split(size):
        yield Batch((x[at],), None, at, view=view)


def asking(batch):
    """Logits, and features of two modules."""
    (x,) = batch.inputs
    return Outputs(x[:, :3], {"deep.2": x[:, :, None] * torch.arange(5.0), "a": -x})


def build(folder, ask=asking, **spec):
    return build_outputs(ask, batches, CacheSpec(views=VIEWS, **spec), samples=48, folder=folder)


def entry_of(folder, made):
    record = TeacherOutputs(
        teacher="a" * 64, data="b" * 64, seed=0, views=VIEWS, samples=48, classes=3, tensors=made.tensors
    )
    store = Store(folder / "store")
    with store.draft("0" * 64) as draft:
        for tensor in made.tensors:
            (made.folder / tensor.path).rename(draft / tensor.path)
        return store.commit(draft, stage="cache_teacher", key="0" * 64, parts={}, record=record)


def test_the_features_asked_for_come_back_and_others_are_named(tmp_path):
    entry = entry_of(tmp_path, build(tmp_path / "built", form="fp16", top_k=2))
    source = CachedTeacher(entry, teacher="a" * 64, data="b" * 64)
    for batch in batches(1, size=20):
        said = source(batch, ("deep.2",))
        assert list(said.features) == ["deep.2"]
        torch.testing.assert_close(said.features["deep.2"], asking(batch).features["deep.2"], rtol=2**-11, atol=1e-6)
        assert not source(batch).features
    with pytest.raises(StageError) as caught:
        source(batch, ("deep.3",))
    assert str(caught.value) == (
        f"the student is to be compared with the teacher's 'deep.3', but the kept teacher outputs in "
        f"{str(entry.folder)!r} have features of: a, deep.2; delete that folder and run again: they are computed anew"
    )


def test_a_build_that_ended_early_goes_on_where_it_was_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "RECORD_SECONDS", 0)
    asked = []

    def ending(batch):
        asked.append(batch.view)
        if len(asked) == 5:
            raise InterruptedError
        return asking(batch)

    with pytest.raises(InterruptedError):
        build(tmp_path / "ended", ending)
    resumed, whole = build(tmp_path / "ended", ending), build(tmp_path / "whole")
    assert asked == [0, 0, 0, 1, 1, 1, 1]  # the last batch of the first try is asked again
    assert resumed.tensors == whole.tensors
    for tensor in whole.tensors:
        assert (resumed.folder / tensor.path).read_bytes() == (whole.folder / tensor.path).read_bytes()


def test_a_cache_beyond_its_limit_says_which_features_take_how_much(tmp_path):
    with pytest.raises(StageError) as caught:
        build(tmp_path / "built", limit_gb=1e-6)
    assert str(caught.value) == (
        "the teacher's outputs for 48 samples in 2 views take 5.18e-06 GB (features of 'deep.2' 3.84e-06, "
        "'a' 7.68e-07), more than 'teacher.cache.limit_gb', 1e-06; ask for fewer views or fewer taps, raise the limit, "
        "or run the teacher beside the student with teacher: {cache: {features: false}}"
    )
    assert not (tmp_path / "built").exists()


def test_features_of_another_shape_are_refused(tmp_path):
    def growing(batch):
        said = asking(batch)
        return replace(said, features={"a": said.features["a"][:, : 4 - batch.view]})

    with pytest.raises(StageError) as caught:
        build(tmp_path, growing)
    assert str(caught.value) == (
        "the teacher's features of 'a' have the shape (16, 3) for a batch of 16 samples, where (16, 4) was expected "
        "from the first batch; what is kept has one shape for every sample: pad the inputs to one length, or run the "
        "teacher beside the student with teacher: {cache: {features: false}}"
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "the teacher gave a feature of 'a' of nan for {}, so no student can learn from it; check the "
         "teacher's weights and the data for NaN"),
        (1e5, "the teacher's largest feature of 'a' for {} is 100000, beyond fp16, which ends at 65504; write teacher: "
         "{{cache: {{form: fp32}}}}, or check the teacher"),
    ],
)  # fmt: skip
def test_features_that_cannot_be_kept_are_named_by_path_and_sample(tmp_path, value, told):
    def wrong(batch):
        feature = torch.zeros(len(batch.ids), 2)
        feature[3, 1] = value
        return Outputs(batch.inputs[0], {"a": feature})

    with pytest.raises(StageError) as caught:
        build(tmp_path, wrong)
    assert str(caught.value) == told.format(f"sample {int(next(batches(0)).ids[3])} in view 0")


def test_features_without_a_cache_are_refused():
    with pytest.raises(ValidationError, match="'features' are to be kept, but the cache is not 'enabled'"):
        CacheSpec(enabled=False, features=True)
