"""The plan as a Prefect flow: one thin task for each stage, which takes and gives digests.

Prefect schedules, retries, and shows states and the result table; the store knows what was computed. Call
`kdq_flows.servers.environment.apply_environment` before you import this module: Prefect reads its settings when it is
first imported.
"""

import contextlib
import logging
import os
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from prefect import Flow, Task, flow, runtime, tags, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TagsContext
from prefect.futures import PrefectFuture, wait
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from kdq_core.errors import KdqError
from kdq_core.plan.study import PlannedBranch, StudyPlan
from kdq_flows.facts.result import RunResult
from kdq_flows.observer import Silent
from kdq_flows.owner import prefect_tag
from kdq_flows.prefect.artifacts import key_of, show_plan
from kdq_flows.prefect.owed import AWAY, drop_events, heard, owe, settle
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.run.retrying import prefect_options
from kdq_flows.run.signals import interrupted_in, leaving
from kdq_flows.run.supervisor import TERMINATE_SECONDS, StageCancelledError
from kdq_flows.servers.servers import ensure_mlflow_ui, running_prefect

STOP_SECONDS = TERMINATE_SECONDS + 0.5
"""Until an interrupted flow is Cancelled, even if a task has not ended."""


class LogObserver(Silent):
    """Writes the ends of stages and messages to the flow run's log."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def stage_ended(self, stage: str, state: str, seconds: float) -> None:
        """Log one line."""
        self._logger.info("%s: %s in %.1f s", stage, state, seconds)

    def message(self, text: str) -> None:
        """Log the text."""
        self._logger.info(text)


def stage_task(pipeline: Pipeline, stage: str, title: str) -> Task[[dict[str, str]], State]:
    """The task of a stage: it waits in this process for the executor, takes digests and gives one."""

    @task(
        name=stage,
        task_run_name=title,
        cache_policy=NO_CACHE,
        persist_result=False,
        **prefect_options(pipeline.plan.recipe.retry_of(stage)),
    )
    def run(parents: dict[str, str]) -> State:
        try:
            digest, cached = pipeline.run_stage(stage, parents)
        except StageCancelledError as error:
            return Cancelled(message=str(error))
        return Completed(data=digest, name="Cached" if cached else "Completed", message=f"digest {digest[:12]}")

    return run


def threads(width: int) -> ThreadPoolTaskRunner[Any]:
    """The threads in which the tasks of a flow wait for their stages."""
    return ThreadPoolTaskRunner(max_workers=max(8, width))


def compress_flow(pipeline: Pipeline) -> Flow[[dict[str, Any], dict[str, Any]], State]:
    """The flow that runs the plan of a pipeline of this process; its parameters are for the reader of the page."""

    @flow(
        name="kdq-compress",
        flow_run_name=pipeline.name,
        validate_parameters=False,
        persist_result=False,
        task_runner=threads(pipeline.executor.width),
    )
    def compress(recipe: dict[str, Any], site: dict[str, Any]) -> State:  # noqa: ARG001
        with TagsContext(current_tags=set()):  # a task with tags first asks for concurrency slots, which takes 2 s
            return _driven(pipeline)

    return compress


def run_here(pipeline: Pipeline) -> State:
    """Run the pipeline in the flow run that has begun; for a flow of a worker."""
    try:
        pipeline.warm_up()
        return _driven(pipeline)
    finally:
        pipeline.finish()


def run_as_flow(pipeline: Pipeline) -> None:
    """Run the pipeline as a flow of the configured server; afterwards its `errors` say which stages failed.

    If the server is lost during the run, KDQ continues inline: the store knows which stages are done.

    Raises:
        KeyboardInterrupt: a signal interrupted the run; the flow is Cancelled.
    """
    log_to(pipeline.logs / "prefect.log")
    try:
        with tags(prefect_tag(), pipeline.plan.recipe.name), few_tries():
            state = compress_flow(pipeline)(
                recipe=pipeline.plan.recipe.model_dump(mode="json"),
                site=pipeline.plan.site.model_dump(mode="json"),
                return_state=True,
            )
        if state.is_completed() or pipeline.errors or pipeline.stopped:
            heard(pipeline.plan.site, state.state_details.flow_run_id)
        else:  # the server was away when the run ended, and has heard the error of that
            settle(pipeline.plan.site)
    except Exception as error:
        if not pipeline.stopped:
            _go_on(pipeline, error)
            drop_events()
            if not settle(pipeline.plan.site):
                pipeline.observer.message(AWAY)
    except BaseException:
        pipeline.stop()
        raise
    if pipeline.stopped:
        raise KeyboardInterrupt


def few_tries() -> AbstractContextManager[Any]:
    """Let Prefect's client give a lost server up after 14 s instead of 62 s; it tells an end twice."""
    tries = int(os.environ.get("PREFECT_CLIENT_MAX_RETRIES", 3))
    return temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: tries})


def _driven(pipeline: Pipeline) -> State:
    """Run the stages as tasks, and without the server if it is lost; keep how the run ended."""
    try:
        state = _drive(pipeline)
    except KdqError:
        _owe(pipeline)
        raise
    except Exception as error:
        _go_on(pipeline, error)
        state = _ended(pipeline)
    if pipeline.stopped:
        return state
    _owe(pipeline)
    if pipeline.error is not None:
        raise pipeline.error
    return state


def _go_on(pipeline: Pipeline, lost: Exception) -> None:
    """Finish the run without the server, if it has not ended."""
    if pipeline.failed and not pipeline.errors:
        pipeline.observer.message(f"the Prefect server was lost ({type(lost).__name__}); KDQ continues without it")
        pipeline.run_inline()
        pipeline.write_page()


def _owe(pipeline: Pipeline) -> None:
    """Keep how this flow run has ended, for a Prefect that does not hear it; the next `reconcile` tells it."""
    if not isinstance(pipeline.error, StageCancelledError):
        error = None if pipeline.error is None else str(pipeline.error)
        message = _ended(pipeline).message or ""
        run = uuid.UUID(str(runtime.flow_run.id))
        owe(pipeline.plan.site, run, pipeline.name, error, message, pipeline.stages.values())


def _ended(pipeline: Pipeline) -> State:
    """The state of a run without errors."""
    facts = pipeline.facts()
    if facts.status == "no-news":
        return Completed(name="NoNews", message="no news: every stage was cached")
    return Completed(message=_described(facts))


def log_to(file: Path) -> None:
    """Send Prefect's log to a file; the terminal of this process belongs to the observer."""
    setup_logging()
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("", *logging.Logger.manager.loggerDict):
        logger = logging.getLogger(name)
        console = [h for h in logger.handlers if isinstance(h, PrefectConsoleHandler) or name == "prefect._internal"]
        for old in console:
            logger.removeHandler(old)
        if console:
            logger.addHandler(handler)


def _drive(pipeline: Pipeline) -> State:
    """Publish the graph, submit every stage to run after its parents, wait for all, and publish the result."""
    address = str(runtime.flow_run.ui_url)
    pipeline.tracking.prefect = address if address.startswith("http") else None
    recipe = pipeline.plan.recipe.name
    show_plan(recipe, StudyPlan(recipe, (PlannedBranch(recipe, {}, pipeline.plan),)))
    futures: dict[str, Any] = {name: entry.digest for name, entry in pipeline.entries.items()}
    tasks: list[PrefectFuture[Any]] = []
    with leaving():
        try:
            for node in pipeline.plan.nodes:
                if node.name in pipeline.left_out:
                    continue
                given = {name: futures[name] for name in node.parents.values()}
                futures[node.name] = stage_task(pipeline, node.name, node.name).submit(given)
                tasks.append(futures[node.name])
            for task_run in tasks:
                task_run.wait()
        except KeyboardInterrupt:
            pipeline.stop()
            wait(tasks, timeout=STOP_SECONDS)
            return Cancelled(message=interrupted_in(pipeline.interrupted))
    pipeline.write_page()
    error = pipeline.error
    if error is not None:
        raise error
    if running_prefect(pipeline.plan.site) is not None:  # otherwise Prefect's client tries for minutes
        _publish(pipeline)
    return _ended(pipeline)


def _publish(pipeline: Pipeline) -> None:
    facts = pipeline.facts()
    recipe = pipeline.plan.recipe.name
    create_table_artifact(key=key_of(recipe, "result"), table=list(facts.table), description=_described(facts))
    if facts.status != "no-news":
        _link(pipeline)
    if facts.report is not None:
        create_link_artifact(
            Path(facts.report).as_uri(), link_text=facts.report, key=key_of(recipe, "report"), description=facts.verdict
        )


def _link(pipeline: Pipeline) -> None:
    """Publish the address of the run's page in MLflow; without that page the run is no worse."""
    with contextlib.suppress(KdqError):
        page = pipeline.tracking.page(ensure_mlflow_ui(pipeline.plan.site))
        if page:
            text = f"{pipeline.name} in MLflow"
            create_link_artifact(
                page, text, key=key_of(pipeline.plan.recipe.name, "mlflow"), description="figures, curves and the model"
            )


def _described(facts: RunResult) -> str:
    version = f"{facts.version.name} version {facts.version.version}" if facts.version else "not registered"
    file = f"{facts.artifact.path} (sha256 {facts.artifact.sha256[:12]})" if facts.artifact else "no file"
    return f"{facts.status}: {version}; {file}"
