"""The plan as a Prefect flow: one thin task for each stage, which takes and gives digests.

Prefect schedules, retries, and shows states and the result table; the store knows what was computed. Call
`kdq_flows.servers.environment.apply_environment` before you import this module: Prefect reads its settings when it is
first imported.
"""

import contextlib
import logging
import uuid
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime, tags, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TagsContext
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.states import Cancelled, Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from kdq_core.errors import KdqError
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.facts.result import RunResult
from kdq_flows.observer import Silent
from kdq_flows.owner import prefect_tag
from kdq_flows.prefect.schedules import too_late
from kdq_flows.run.diary import Diary
from kdq_flows.run.logs import claimed_name
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.run.retrying import prefect_options
from kdq_flows.servers.servers import ensure_mlflow_ui

PIPELINES: dict[str, Pipeline] = {}
"""Runs of this process by token. Tasks take the token, because a live object must not pass through Prefect."""


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


@task(cache_policy=NO_CACHE, persist_result=False)
def stage_task(token: str, stage: str, parents: dict[str, str]) -> State:
    """Run one stage; the state's data is the digest of its entry."""
    digest, cached = PIPELINES[token].run_stage(stage, parents)
    return Completed(data=digest, name="Cached" if cached else "Completed", message=f"digest {digest[:12]}")


def run_name() -> str:
    """Name of a scheduled run, made as `kdq run` does: the recipe's name and the time of the start."""
    asked = runtime.flow_run.parameters
    return claimed_name(asked["recipe"]["name"], _site_of(asked.get("site")))


def _site_of(site: dict[str, Any] | None) -> Site:
    return Site.model_validate(site) if site else Site.from_environment()


@flow(
    name="kdq-compress",
    flow_run_name=run_name,
    validate_parameters=False,
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=8),
)
def compress_flow(
    recipe: dict[str, Any],
    site: dict[str, Any] | None = None,
    allowed_lag_seconds: float | None = None,
    token: str | None = None,
) -> State:
    """Run a recipe's plan.

    Args:
        recipe: the recipe, validated before it was deployed.
        site: where to run it; by default the site that the environment describes.
        allowed_lag_seconds: Prefect cancels a scheduled run as `SkippedLate` if it starts later than this.
        token: names a pipeline of this process, for `kdq run`.
    """
    expected = runtime.flow_run.scheduled_start_time
    if token is None and allowed_lag_seconds is not None and too_late(expected, allowed_lag_seconds):
        return Cancelled(name="SkippedLate", message=f"more than {allowed_lag_seconds:g} s after its time {expected}")
    if token is not None:
        with TagsContext(current_tags=set()):  # a task with tags first asks for concurrency slots, which takes 2 s
            return _drive(token)
    from kdq_flows.prefect.reconcile import claim, reconcile

    claim(runtime.flow_run.id)
    where = _site_of(site)
    reconcile(where)
    with Diary(where, recipe["name"], LogObserver(get_run_logger()), runtime.flow_run.name) as diary:
        return _scheduled(Recipe.model_validate(recipe), where, diary)


def _scheduled(recipe: Recipe, where: Site, diary: Diary) -> State:
    """Run a recipe in a process of a worker."""
    pipeline = Pipeline(recipe, where, diary, diary.run)
    diary.facts, diary.ended = pipeline.facts, pipeline.stages.values
    token = uuid.uuid4().hex
    PIPELINES[token] = pipeline
    try:
        pipeline.warm_up()
        state = _drive(token)
    finally:
        del PIPELINES[token]
        pipeline.finish()
    return state


def run_as_flow(pipeline: Pipeline) -> None:
    """Run the pipeline as a flow of the configured server; afterwards its `errors` say which stages failed.

    If the server is lost during the run, KDQ continues inline: the store knows which stages are done.
    """
    token = uuid.uuid4().hex
    PIPELINES[token] = pipeline
    named = compress_flow.with_options(flow_run_name=pipeline.name)
    log_to(pipeline.logs / "prefect.log")
    try:
        with tags(prefect_tag(), pipeline.plan.recipe.name):
            named(
                recipe=pipeline.plan.recipe.model_dump(mode="json"),
                site=pipeline.plan.site.model_dump(mode="json"),
                token=token,
                return_state=True,
            )
    except Exception as error:
        if not pipeline.errors:
            pipeline.observer.message(f"the Prefect server was lost ({type(error).__name__}); KDQ continues without it")
            pipeline.run_inline()
    except BaseException:
        pipeline.cancelled.set()
        raise
    finally:
        del PIPELINES[token]


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


def _drive(token: str) -> State:
    """Submit every stage to run after its parents, wait for all, and publish the result table."""
    pipeline = PIPELINES[token]
    address = str(runtime.flow_run.ui_url)
    pipeline.tracking.prefect = address if address.startswith("http") else None
    futures: dict[str, Any] = {name: entry.digest for name, entry in pipeline.entries.items()}
    try:
        for node in pipeline.plan.nodes:
            if node.name in pipeline.left_out:
                continue
            options = prefect_options(pipeline.plan.recipe.retry_of(node.name))
            named = stage_task.with_options(name=node.name, task_run_name=node.name, **options)
            futures[node.name] = named.submit(token, node.name, {name: futures[name] for name in node.parents.values()})
        for future in futures.values():
            if not isinstance(future, str):
                future.wait()
    except BaseException as stopped:
        if not isinstance(stopped, Exception):  # if only the server is lost, the workers may finish
            pipeline.cancelled.set()
        raise
    pipeline.write_page()
    error = pipeline.error
    if error is not None:
        raise error
    return _published(pipeline)


def _published(pipeline: Pipeline) -> State:
    facts = pipeline.facts()
    create_table_artifact(key="kdq-result", table=list(facts.table), description=_described(facts))
    if facts.status != "no-news":
        _link(pipeline)
    if facts.report is not None:
        create_link_artifact(
            Path(facts.report).as_uri(), link_text=facts.report, key="kdq-report", description=facts.verdict
        )
    if facts.status == "no-news":
        return Completed(name="NoNews", message="no news: every stage was cached")
    return Completed(message=_described(facts))


def _link(pipeline: Pipeline) -> None:
    """Publish the address of the run's page in MLflow; without that page the run is no worse."""
    with contextlib.suppress(KdqError):
        page = pipeline.tracking.page(ensure_mlflow_ui(pipeline.plan.site))
        if page:
            text = f"{pipeline.name} in MLflow"
            create_link_artifact(page, text, key="kdq-mlflow", description="figures, curves and the model")


def _described(facts: RunResult) -> str:
    version = f"{facts.version.name} version {facts.version.version}" if facts.version else "not registered"
    file = f"{facts.artifact.path} (sha256 {facts.artifact.sha256[:12]})" if facts.artifact else "no file"
    return f"{facts.status}: {version}; {file}"
