"""A study as one Prefect flow: a task for each node of its plan, named after the stage and the branch."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

from prefect import Flow, flow, runtime, tags
from prefect.artifacts import create_table_artifact
from prefect.context import TagsContext
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, State

from kdq_core.errors import KdqError
from kdq_core.plan.study import SharedNode
from kdq_flows.owner import prefect_tag
from kdq_flows.prefect.artifacts import key_of, show_plan
from kdq_flows.prefect.flow import STOP_SECONDS, few_tries, log_to, stage_task, threads
from kdq_flows.prefect.owed import AWAY, drop_events, owe, settle
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.run.signals import interrupted_in, leaving
from kdq_flows.run.study import StudyRun


def study_flow(study: StudyRun, began: Callable[[uuid.UUID], object]) -> Flow[[dict[str, Any]], State]:
    """The flow that runs all branches of a study of this process; the axes are for the reader of the page.

    Args:
        study: what it runs.
        began: called with the id of the flow run.
    """

    @flow(
        name="kdq-study",
        flow_run_name=study.name,
        validate_parameters=False,
        persist_result=False,
        task_runner=threads(study.executor.width),
    )
    def run(axes: dict[str, Any]) -> State:  # noqa: ARG001
        with TagsContext(current_tags=set()):  # a task with tags first asks for concurrency slots, which takes 2 s
            began(uuid.UUID(str(runtime.flow_run.id)))
            _drive(study)
            return _ended(study)

    return run


def run_study_here(study: StudyRun) -> State:
    """Run the study in the flow run that has begun, for a flow of a worker; without the server if it is lost."""
    try:
        study.warm_up()
        study.check()
        try:
            with TagsContext(current_tags=set()):
                _drive(study)
        except KdqError:
            raise
        except Exception as error:
            _lost(study, error)
            if not study.done:
                study.run_inline()
        if not study.stopped:
            _owe(study, uuid.UUID(str(runtime.flow_run.id)))
    finally:
        study.finish()
    return _ended(study)


def _drive(study: StudyRun) -> None:
    """Run the branches as tasks of the flow run that has begun, and publish a table of them."""
    address = str(runtime.flow_run.ui_url)
    study.shown_at(address if address.startswith("http") else None)
    show_plan(study.study.name, study.plan)
    begun: list[Future[Any]] = []

    def start(pipeline: Pipeline, one: SharedNode, parents: Mapping[str, str]) -> Future[Any]:
        begun.append(_start(pipeline, one, parents))
        return begun[-1]

    with leaving():
        try:
            study.run(start)
        except KeyboardInterrupt:
            wait(begun, timeout=STOP_SECONDS)
            return
    create_table_artifact(key=key_of(study.study.name, "study"), table=_rows(study), description=_verdict(study))


def _ended(study: StudyRun) -> State:
    """The state of a study that was interrupted, or has no errors."""
    if study.stopped:
        return Cancelled(message=interrupted_in(study.interrupted))
    if study.error is not None:
        raise study.error
    return Completed(message=_verdict(study))


def _lost(study: StudyRun, error: Exception) -> None:
    study.observer.message(f"the Prefect server was lost ({type(error).__name__}); KDQ continues without it")


def run_study_as_flow(study: StudyRun) -> None:
    """Run the study as a flow of the configured server; afterwards its facts say what failed.

    If the server is lost during the run, KDQ continues inline: the store knows which stages are done.

    Raises:
        KeyboardInterrupt: a signal interrupted the run; the flow is Cancelled.
    """
    runs: list[uuid.UUID] = []
    log_to(study.site.home / "logs" / study.name / "prefect.log")
    lost = False
    try:
        with tags(prefect_tag(), study.study.name), few_tries():
            study_flow(study, runs.append)(axes={one.name: one.axes for one in study.planned}, return_state=True)
    except Exception as error:
        if not study.stopped:
            lost = True
            _lost(study, error)
    if study.stopped:
        raise KeyboardInterrupt
    if not study.done:
        study.run_inline()
    if runs:
        _owe(study, runs[0])
    if lost:
        drop_events()
    if not settle(study.site) and lost:
        study.observer.message(AWAY)


def _owe(study: StudyRun, run: uuid.UUID) -> None:
    """Keep how the flow run has ended, for a Prefect that does not hear it; the next `reconcile` tells it."""
    failed = None if study.error is None else str(study.error)
    owe(study.site, run, study.name, failed, _verdict(study), study.stages.values())


def _start(pipeline: Pipeline, one: SharedNode, parents: Mapping[str, str]) -> Future[Any]:
    """Submit a node as a task."""
    title, done = one.title, Future[Any]()

    def ended(future: PrefectFuture[Any]) -> None:
        with suppress(Exception):
            future.wait()  # reads the state here; the server that `state` asks else may hear of it later
        if future.state.is_completed():
            done.set_result(None)
        else:
            lost = RuntimeError(f"Prefect lost the task {title}: {future.state.message}")
            done.set_exception(pipeline.errors.get(one.node.name) or lost)

    stage_task(pipeline, one.node.name, title).submit(dict(parents)).add_done_callback(ended)
    return done


def _verdict(study: StudyRun) -> str:
    return study.selected.verdict if study.selected else f"{len(study.pipelines)} branches"


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
