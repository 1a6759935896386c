import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from kdq_core.errors import StageError
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import EpochRecord, Gain, Metric
from kdq_registry.environment import client
from kdq_registry.tracking import Tracker, flattened
from kdq_registry.uploading import Upload
from tests.registry.tracked import run_id


@pytest.fixture
def tracker(site: Site, recipe: Recipe) -> Tracker:
    return Tracker.begin(site, recipe, owner="host:1:2:boot", plan_tags={"kdq.teacher.1": "version 2 of 'big'"})


def test_a_pipeline_run_has_owner_environment_options_and_recipe(site: Site, tracker: Tracker) -> None:
    run = client(site).get_run(run_id(site, tracker))
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "digits"
    assert run.data.tags["kdq.owner"] == "host:1:2:boot"
    assert run.data.tags["kdq.teacher.1"] == "version 2 of 'big'"
    assert {"kdq.env.python", "kdq.env.platform", "kdq.env.torch", "kdq.env.kdq"} <= run.data.tags.keys()
    assert run.data.params["distill.fit.epochs"] == "10"
    assert run.data.params["evaluate.0.use"] == "quality"
    recipe = (site.home / "mlflow" / "artifacts" / "digits" / run.info.run_id / "artifacts" / "recipe.yaml").read_text()
    assert "use: auto" in recipe


def test_a_stage_is_a_nested_run_with_its_options_and_curves(site: Site, tracker: Tracker) -> None:
    stage = tracker.stage_run("distill", "c" * 64, {"use": "logit-kd", "fit": {"epochs": 3}})
    tracker.log_epochs(stage, [EpochRecord(epoch=e, values={"train/loss": 1 / e}) for e in (1, 2)])
    tracker.finish(stage, "FINISHED")
    run = client(site).get_run(run_id(site, tracker, stage))
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == run_id(site, tracker)
    assert run.data.tags["kdq.owner"] == "host:1:2:boot"
    assert run.data.tags["kdq.stage"] == "distill"
    assert run.data.params == {"use": "logit-kd", "fit.epochs": "3"}
    history = client(site).get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]


def test_the_page_of_a_run_is_its_artifact(site: Site, tracker: Tracker) -> None:
    tracker.log_page("<p>verdict</p>")
    artifacts = site.home / "mlflow" / "artifacts" / "digits" / run_id(site, tracker) / "artifacts"
    assert (artifacts / "report.html").read_text() == "<p>verdict</p>"


def test_metrics_are_named_by_role_and_carry_their_interval(site: Site, tracker: Tracker) -> None:
    top1 = Metric(name="top1", value=0.9, unit="fraction", direction="higher", low=0.8, high=0.95)
    tracker.log_metrics(tracker.run, "int8", [top1])
    logged = client(site).get_run(run_id(site, tracker)).data.metrics
    assert logged == {"int8/top1": 0.9, "int8/top1_low": 0.8, "int8/top1_high": 0.95}


def test_metrics_and_curves_that_are_not_finite_are_logged(site: Site, tracker: Tracker) -> None:
    f1 = Metric(name="f1", value=math.nan, unit="fraction", direction="higher", low=-math.inf, high=math.inf)
    tracker.log_metrics(tracker.run, "int8", [f1])
    tracker.log_epochs(tracker.run, [EpochRecord(epoch=1, values={"validation/loss": math.nan})])
    logged = client(site).get_run(run_id(site, tracker)).data.metrics
    assert math.isnan(logged["int8/f1"])
    assert math.isnan(logged["validation/loss"])
    assert logged["int8/f1_low"] < -1e308  # a database has no infinity: MLflow puts its largest number there
    assert logged["int8/f1_high"] > 1e308


def test_the_teachers_gain_is_logged_with_its_interval_and_both_models(site: Site, tracker: Tracker) -> None:
    gain = Gain(metric="top1", taught=0.9, control=0.875, difference=0.025, low=-0.01, high=0.06, samples=300)
    stage = tracker.stage_run("distill", "c" * 64, {})
    tracker.log_gains(stage, [gain])
    run = client(site).get_run(run_id(site, tracker, stage))
    ends = {"": 0.025, "_low": -0.01, "_high": 0.06, "_taught": 0.9, "_control": 0.875}
    assert run.data.metrics == {f"teacher_difference/top1{end}": value for end, value in ends.items()}
    assert run.data.tags["teacher_difference/top1"] == "undecided"  # a chart of the metric alone would claim a gain


def test_what_is_known_at_the_end_of_a_stage_becomes_params_too(site: Site, tracker: Tracker) -> None:
    stage = tracker.stage_run("distill", "c" * 64, {"use": "fitnet"})
    tracker.log_params(stage, {"compared": {"fitnet": "a ~ b"}, "transferred": "x" * 7000})
    params = client(site).get_run(run_id(site, tracker, stage)).data.params
    assert params.pop("transferred").startswith("x" * 5900)
    assert params == {"use": "fitnet", "compared.fitnet": "a ~ b"}


def test_more_points_than_one_call_takes_are_all_logged(site: Site, tracker: Tracker) -> None:
    tracker.log_epochs(tracker.run, [EpochRecord(epoch=e, values={"a": e, "b": -e}) for e in range(1, 601)])
    assert len(client(site).get_metric_history(run_id(site, tracker), "b")) == 600


def test_threads_may_share_a_tracker(site: Site, tracker: Tracker) -> None:
    def stage(number: int) -> str:
        run = tracker.stage_run(f"stage-{number}", "d" * 64, {"number": number})
        tracker.log_epochs(run, [EpochRecord(epoch=1, values={"number": number})])
        tracker.finish(run, "FINISHED")
        return run

    with ThreadPoolExecutor(8) as pool:
        runs = [client(site).get_run(run_id(site, tracker, run)) for run in list(pool.map(stage, range(16)))]
    assert [run.data.metrics["number"] for run in runs] == list(range(16))
    experiment = client(site).get_experiment_by_name("digits").experiment_id
    assert len(client(site).search_runs([experiment])) == 17


def test_the_end_closes_the_stages_that_are_still_open(site: Site, tracker: Tracker) -> None:
    done, left = tracker.stage_run("train_teacher", "e" * 64, {}), tracker.stage_run("distill", "f" * 64, {})
    tracker.finish(done, "FINISHED")
    tracker.end("FAILED")
    states = [client(site).get_run(run_id(site, tracker, run)).info.status for run in (done, left, "")]
    assert states == ["FINISHED", "FAILED", "FAILED"]


def test_a_deleted_experiment_names_the_remedy(site: Site, recipe: Recipe) -> None:
    mlflow = client(site)
    mlflow.delete_experiment(mlflow.create_experiment("digits"))
    tracker = Tracker.begin(site, recipe, owner="me", plan_tags={})
    with pytest.raises(StageError) as caught:
        Upload(site, tracker.spool).send(pytest.fail)
    assert str(caught.value) == (
        "the MLflow experiment 'digits' was deleted, and its name is still taken; restore it "
        "(`mlflow experiments restore`), or give the recipe another name"
    )


def test_options_are_flattened_to_dotted_names() -> None:
    nested = json.loads('{"a": {"b": 1, "c": []}, "d": [{"e": null}, "f"], "g": {}}')
    assert dict(flattened(nested)) == {"a.b": 1, "a.c": [], "d.0.e": None, "d.1": "f", "g": {}}
