"""The flow of a schedule: a worker runs it for a recipe with or without branches, if the policies let it."""

import contextlib
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.states import Cancelled, Crashed, State
from prefect.task_runners import ThreadPoolTaskRunner

from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.recipe_file import document_from_text
from kdq_core.reading.studies import read_study
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.recipe.study import FIELDS
from kdq_flows.facts.report import yaml_of
from kdq_flows.prefect.due import skipped
from kdq_flows.prefect.flow import LogObserver, run_here
from kdq_flows.prefect.pools import site_here
from kdq_flows.prefect.reconcile import claim, reconcile
from kdq_flows.prefect.study_flow import run_study_here
from kdq_flows.run.diary import Diary
from kdq_flows.run.executors import Executor, executor_of
from kdq_flows.run.logs import claimed_name
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.run.search import study_run
from kdq_flows.run.shared import Shared
from kdq_flows.run.tidy import tidied


def run_name() -> str:
    """Name of a scheduled run, made as `kdq run` does: the recipe's name and the time of the start."""
    asked = runtime.flow_run.parameters
    return claimed_name(asked["recipe"]["name"], site_here())


@flow(
    name="kdq-compress",
    flow_run_name=run_name,
    validate_parameters=False,
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=8),
)
def scheduled_flow(
    recipe: dict[str, Any],
    site: dict[str, Any] | None = None,  # noqa: ARG001 - deployments of earlier versions give one
    allowed_lag_seconds: float | None = None,  # noqa: ARG001 - `kdq_flows.prefect.due` reads the three of the policy
    missed: str | None = None,  # noqa: ARG001
    overlap: str | None = None,  # noqa: ARG001
    look_seconds: float | None = None,  # noqa: ARG001 - `kdq_flows.prefect.news` reads it
) -> State:
    """Run a recipe, or skip this run.

    Args:
        recipe: the recipe, checked before it was deployed.
        site: has no effect; the environment of the machine that works describes its site.
        allowed_lag_seconds: a run that starts later than this is missed.
        missed: what becomes of missed runs; see `kdq_flows.prefect.policy.Policy`.
        overlap: what becomes of a run that is due while the one before still runs.
        look_seconds: how often `kdq serve` looks whether the data have changed.
    """
    where, run, name = site_here(), uuid.UUID(str(runtime.flow_run.id)), str(runtime.flow_run.name)
    with get_client(sync_client=True) as client:
        why = skipped(client, run)
    if why is not None:
        return Cancelled(name=why.name, message=why.message)
    claim(run)
    _print_to(where.home / "logs" / name / "prefect.log")
    reconcile(where)
    with tidied(where), Diary(where, recipe["name"], LogObserver(get_run_logger()), name) as diary:
        state = _run(recipe, where, diary)
    return _to_resume(state, run) if state.is_cancelled() else state


def _run(recipe: dict[str, Any], where: Site, diary: Diary) -> State:
    with executor_of(where, diary.message) as executor:
        return _ran(recipe, where, diary, executor)


def _ran(recipe: dict[str, Any], where: Site, diary: Diary, executor: Executor) -> State:
    if FIELDS & recipe.keys():
        document = document_from_text(yaml_of(recipe), "the deployed recipe")
        study = study_run(read_study(document, Catalog.load()), where, diary, diary.run, executor)
        diary.facts, diary.ended = study.facts, study.stages.values
        return run_study_here(study)
    pipeline = Pipeline(Recipe.model_validate(recipe), where, diary, diary.run, shared=Shared(executor=executor))
    diary.facts, diary.ended = pipeline.facts, pipeline.stages.values
    return run_here(pipeline)


def _to_resume(state: State, run: uuid.UUID) -> State:
    """Crashed instead of Cancelled, unless somebody cancelled the run in Prefect: the next `kdq serve` resumes it."""
    with contextlib.suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        now = client.read_flow_run(run).state
        if now is not None and now.is_cancelling():
            return state
    return Crashed(message=state.message)


def _print_to(file: Path) -> None:
    """Print to a file, and no longer to the pipe of the worker: a worker that dies would end this run with its pipe."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as target:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(target.fileno(), stream.fileno())
