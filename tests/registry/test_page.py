import socket
from collections.abc import Callable

import pytest

from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import EpochRecord, ModelVersion
from kdq_registry.environment import client
from kdq_registry.tracking import Tracker
from kdq_registry.uploading import Upload
from tests.registry.tracked import run_id


def test_a_run_names_its_user_its_source_its_data_and_its_page_in_prefect(site: Site, recipe: Recipe) -> None:
    tracker = Tracker.begin(
        site, recipe, owner="host:1:2:boot", plan_tags={}, data="f" * 64, prefect="http://prefect/runs/1"
    )
    run = client(site).get_run(run_id(site, tracker))
    assert run.info.user_id not in ("", "unknown")
    assert run.data.tags["mlflow.user"] == run.info.user_id
    assert run.data.tags["mlflow.source.name"] == "kdq run"
    assert run.data.tags["mlflow.note.content"] == (
        "KDQ's run of the recipe `digits`: workload `digits`, for `onnxruntime-cpu`.\n\n"
        "[Stages, states and logs in Prefect](http://prefect/runs/1)"
    )
    data = run.inputs.dataset_inputs[0]
    assert (data.dataset.name, data.dataset.digest, data.dataset.source_type) == ("digits", "f" * 36, "kdq")
    assert f'"fingerprint": "{"f" * 64}"' in data.dataset.source
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "train, validation, test")]
    experiment = client(site).get_experiment_by_name("digits")
    upload = Upload(site, tracker.spool)
    assert upload.page("http://mlflow:5000/") is None
    upload._run(client(site), tracker.run)
    assert upload.page("http://mlflow:5000/") == (
        f"http://mlflow:5000/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"
        "?workflowType=machine_learning"
    )


def test_experiments_open_as_model_training_those_of_earlier_runs_too(site: Site, recipe: Recipe) -> None:
    mlflow = client(site)
    mlflow.create_experiment("digits", (site.home / "earlier").as_uri())
    for name in ("digits", "new"):
        named = recipe.model_copy(update={"name": name})
        run_id(site, Tracker.begin(site, named, owner="me", plan_tags={}))
    kinds = [mlflow.get_experiment_by_name(name).tags["mlflow.experimentKind"] for name in ("digits", "new")]
    assert kinds == ["custom_model_development"] * 2


def test_curves_have_the_times_at_which_epochs_ended(site: Site, recipe: Recipe) -> None:
    tracker = Tracker.begin(site, recipe, owner="me", plan_tags={})
    for epoch, at in ((1, 1000.5), (2, 1060.25)):
        tracker.log_epochs(tracker.run, [EpochRecord(epoch=epoch, values={"train/loss": 0.5})], at)
    points = client(site).get_metric_history(run_id(site, tracker), "train/loss")
    assert [(point.step, point.timestamp) for point in points] == [(1, 1000500), (2, 1060250)]


def test_no_hash_is_a_tag_that_a_runs_page_shows(site: Site, recipe: Recipe) -> None:
    tracker = Tracker.begin(site, recipe, owner="me", plan_tags={}, data="f" * 64)
    stage = tracker.stage_run("distill", "c" * 64, {})
    for run in (tracker.run, stage):
        tags = client(site).get_run(run_id(site, tracker, run)).data.tags
        shown = {name: value for name, value in tags.items() if not name.startswith("mlflow.")}
        assert not [name for name, value in shown.items() if "f" * 12 in value or "c" * 12 in value]
    assert f"`{'c' * 64}`" in client(site).get_run(run_id(site, tracker, stage)).data.tags["mlflow.note.content"]


def test_a_logged_model_has_the_figures_of_the_file_and_their_data(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    version = registered()
    mlflow = client(site)
    model = mlflow.get_logged_model(mlflow.get_model_version("digits", "1").tags["kdq.logged_model"])
    figures = {metric.key: metric for metric in model.metrics}
    assert figures["int8/top1"].value == 0.97
    assert (figures["int8/top1"].dataset_name, figures["int8/top1"].dataset_digest) == ("digits", "b" * 36)
    assert not [name for name in figures if name.startswith("teacher/")]
    assert model.tags["mlflow.user"] not in ("", "unknown")
    outputs = mlflow.get_run(version.run_id).outputs.model_outputs
    assert [one.model_id for one in outputs] == [model.model_id]
    registered(top1=0.5)
    figures = {metric.key: metric.value for metric in mlflow.get_logged_model(model.model_id).metrics}
    assert figures["int8/top1"] == 0.5


def test_a_version_names_who_registered_it_in_a_tag_as_mlflow_leaves_its_column_empty(
    site: Site, registered: Callable[..., ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    registered()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody else")
    registered(top1=0.5)
    version = client(site).get_model_version("digits", "1")
    assert version.tags["kdq.registered_by"] == f"ada@{socket.gethostname()}"
    assert version.user_id is None  # if MLflow fills it one day, the tag can go


def test_no_hash_but_those_of_the_file_and_the_seal_is_a_tag_of_a_version(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered()
    tags = client(site).get_model_version("digits", "1").tags
    assert sorted(name for name in tags if not name.startswith("mlflow.")) == [
        "kdq.logged_model", "kdq.registered_by", "kdq.report", "kdq.seal", "kdq.sha256"
    ]  # fmt: skip
