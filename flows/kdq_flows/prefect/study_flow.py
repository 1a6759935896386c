"""A study as one Prefect flow: a task for each node of its plan, named after the stage and the branch."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from prefect import flow, runtime, tags
from prefect.artifacts import create_table_artifact
from prefect.context import TagsContext
from prefect.futures import PrefectFuture
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from kdq_core.plan.study import SharedNode
from kdq_flows.owner import prefect_tag
from kdq_flows.prefect.flow import PIPELINES, log_to, stage_task
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.run.retrying import prefect_options
from kdq_flows.run.study import StudyRun, title_of

_STUDIES: dict[str, StudyRun] = {}
"""Studies of this process by token."""


@flow(
    name="kdq-study", validate_parameters=False, persist_result=False, task_runner=ThreadPoolTaskRunner(max_workers=8)
)
def study_flow(token: str, axes: dict[str, Any]) -> State:  # noqa: ARG001 - the page shows the axes
    """Run all branches of a study.

    Args:
        token: names a study of this process.
        axes: the axes of its branches, for the reader of the page.
    """
    with TagsContext(current_tags=set()):  # a task with tags first asks for concurrency slots, which takes 2 s
        study = _STUDIES[token]
        address = str(runtime.flow_run.ui_url)
        study.shown_at(address if address.startswith("http") else None)
        study.run(_start)
        verdict = study.selected.verdict if study.selected else f"{len(study.pipelines)} branches"
        create_table_artifact(key="kdq-study", table=_rows(study), description=verdict)
        if study.error is not None:
            raise study.error
        return Completed(message=verdict)


def run_study_as_flow(study: StudyRun) -> None:
    """Run the study as a flow of the configured server; afterwards its facts say what failed.

    If the server is lost during the run, KDQ continues inline: the store knows which stages are done.
    """
    token = uuid.uuid4().hex
    _STUDIES[token] = study
    log_to(study.site.home / "logs" / study.name / "prefect.log")
    named = study_flow.with_options(flow_run_name=study.name)
    try:
        with tags(prefect_tag(), study.study.name):
            named(token=token, axes={one.name: one.axes for one in study.planned}, return_state=True)
    except Exception as error:
        study.observer.message(f"the Prefect server was lost ({type(error).__name__}); KDQ continues without it")
    finally:
        del _STUDIES[token]
    if not study.done:
        study.run_inline()


def _start(pipeline: Pipeline, one: SharedNode, parents: Mapping[str, str]) -> Future[Any]:
    """Submit a node as a task."""
    token, done = uuid.uuid4().hex, Future[Any]()
    PIPELINES[token] = pipeline
    title = title_of(one)
    named = stage_task.with_options(
        name=one.node.name, task_run_name=title, **prefect_options(pipeline.plan.recipe.retry_of(one.node.name))
    )

    def ended(future: PrefectFuture[Any]) -> None:
        del PIPELINES[token]
        with suppress(Exception):
            future.wait()  # reads the state here; the server that `state` asks else may hear of it later
        if future.state.is_completed():
            done.set_result(None)
        else:
            lost = RuntimeError(f"Prefect lost the task {title}: {future.state.message}")
            done.set_exception(pipeline.errors.get(one.node.name) or lost)

    named.submit(token, one.node.name, dict(parents)).add_done_callback(ended)
    return done


def _rows(study: StudyRun) -> list[dict[str, Any]]:
    """A row for each branch: its axes, and the metrics that the selection looks at."""
    spec = study.study.spec.select
    metrics = dict.fromkeys(() if spec is None else (*spec.metrics, *(goal.metric for goal in spec.goals)))
    rows = []
    for planned in study.planned:
        facts = study.pipelines[planned.name].facts()
        values = facts.models.get(spec.of if spec else "int8", {})
        row = {"branch": planned.name, "status": facts.status}
        rows.append(row | {name: values.get(name) for name in metrics})
    return rows
