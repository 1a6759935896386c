from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdq_core.errors import RecipeError, StageError
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.records import Artifact, EvaluationReport, ModelVersion
from kdq_registry.lock import lock_of_run, lock_of_version
from kdq_registry.registering import register
from kdq_registry.tracking import Tracker
from tests.registry.tracked import run_id


def test_a_version_keeps_the_lock_of_its_run_as_a_sealed_file(
    site: Site, recipe: Recipe, artifact: Artifact, report_of: Callable[..., EvaluationReport],
    onnx_file: Callable[[int], Path],
) -> None:  # fmt: skip
    from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME

    register(
        site, recipe=recipe, artifact_file=onnx_file(0), artifact=artifact, report=report_of(), lineage={},
        run_id=None, example={"image": np.ones((2, 4), np.float32)}, lock='{"the": "lock"}',
    )  # fmt: skip
    assert lock_of_version(site, "digits/1") == b'{"the": "lock"}'
    path = next((site.home / "mlflow").rglob("lock.json"))
    (path.parent / REGISTERED_MODEL_META_FILE_NAME).write_text("model_name: digits\n")  # as MLflow does when it loads
    assert lock_of_version(site, "digits/1") == b'{"the": "lock"}'
    path.write_text('{"another": "lock"}')
    with pytest.raises(StageError) as caught:
        lock_of_version(site, "digits/1")
    assert str(caught.value).startswith("version 1 of model 'digits' cannot be replayed: 'lock.json' has the sha256 ")


def test_a_version_without_a_lock_is_told(site: Site, registered: Callable[..., ModelVersion]) -> None:
    registered()
    with pytest.raises(RecipeError) as caught:
        lock_of_version(site, "digits/1")
    assert str(caught.value) == (
        "version 1 of model 'digits' has no lock: no run of `kdq run` registered it; name another version, or a lock "
        "that `kdq lock` wrote"
    )


def test_the_lock_of_a_run_is_found_by_its_name_and_its_id(site: Site, recipe: Recipe) -> None:
    assert lock_of_run(Site(home=site.home / "nothing"), "digits-1") is None
    tracker = Tracker.begin(site, recipe, owner="me", plan_tags={}, name="digits-1")
    run_id(site, tracker)
    assert lock_of_run(site, "digits-1") is None
    tracker.log_papers("# digits-1\n", '{"the": "lock"}')
    run = run_id(site, tracker)
    assert lock_of_run(site, "digits-1") == lock_of_run(site, run) == b'{"the": "lock"}'
    assert lock_of_run(site, "it's another") is None
    report = site.home / "mlflow" / "artifacts" / "digits" / run / "artifacts" / "report.md"
    assert report.read_text() == "# digits-1\n"
