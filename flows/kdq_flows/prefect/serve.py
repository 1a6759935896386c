"""`kdq serve`: keeps a Prefect server, a work pool and one process worker running, in the foreground."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import cast

from kdq_core.errors import KdqError, LockedError, RecipeError
from kdq_core.recipe.spec import Site
from kdq_flows.owner import host
from kdq_flows.prefect import due
from kdq_flows.prefect.news import News
from kdq_flows.prefect.pools import ensure_pool, nodes_of, pool_of
from kdq_flows.prefect.reconcile import close_unbegun, reconcile
from kdq_flows.prefect.run_lines import RunLines
from kdq_flows.servers import processes
from kdq_flows.servers.environment import apply_environment, prefect_environment, site_environment
from kdq_flows.servers.processes import Managed, ProcessRecord
from kdq_flows.servers.servers import NODES, PREFECT, WORKER, ensure_prefect

LOOK_SECONDS = 1.0
HEALTHY_SECONDS = 30.0
SCHEDULES_SECONDS = 5.0
LONGEST_WAIT = 30.0
ZOMBIES = "kdq: close flow runs without a heartbeat"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What one `serve` does for a site.

    Attributes:
        site: whose environment the worker gets.
        pool: the pool that it serves.
        worker: name of the worker among the managed processes.
        at_once: the most runs that its worker takes at once.
        say: called with each line for the user.
    """

    site: Site
    pool: str
    worker: str
    at_once: int
    say: Say

    @property
    def schedules(self) -> bool:
        """Whether it runs schedules, and so applies their policies."""
        return self.worker == WORKER


def serve(
    site: Site, *, nodes: bool = False, stop: threading.Event | None = None, say: Say = lambda _line: None
) -> None:
    """Run scheduled compressions, or nodes, until SIGTERM, SIGINT or `stop`.

    At the end it stops the worker, and the server if this call started it.

    Args:
        site: its home holds records and logs; only one `serve` of each kind may use a home.
        nodes: serve the pool of nodes, for runs with the executor `pool`, instead of schedules.
        stop: lets another thread end it.
        say: called with each line for the user.

    Raises:
        RecipeError: another process already serves this home, or a configured server does not answer.
        StageError: the site's server does not start.
    """
    stop, at_once = stop or threading.Event(), site.workers or 1
    job = Job(site, nodes_of(site), NODES, at_once, say) if nodes else Job(site, pool_of(site), WORKER, 1, say)
    try:
        with processes.locked(site, "serve-nodes" if nodes else "serve", wait=False), _signals(stop):
            _serve(job, stop)
    except LockedError:
        raise RecipeError(
            f"another 'kdq serve' is at work in {str(site.home)!r}; end it first, or choose another home with KDQ_HOME"
        ) from None


def _serve(job: Job, stop: threading.Event) -> None:
    site = job.site
    api, started = ensure_prefect(site)
    news = News(site)
    try:
        _end_strange_worker(job, api)
        _prepare(job, api)
        job.say(f"serving pool {job.pool!r} from {api}; Ctrl-C ends it")
        _watch(job, api, stop, RunLines(job.pool, job.say), news)
    finally:
        news.close()
        processes.stop(site, job.worker)
        _close(job)
        if started:
            processes.stop(site, PREFECT)
        job.say("stopped")


def _end_strange_worker(job: Job, api: str) -> None:
    """End the worker of another server or pool. That of a killed `kdq serve` is taken over with its run."""
    import psutil

    record = processes.read_record(job.site, job.worker)
    if record is not None and processes.is_running(record):
        with suppress(psutil.Error):
            there = psutil.Process(record.pid)
            if there.environ().get("PREFECT_API_URL") == api and job.pool in there.cmdline():
                return
    processes.stop(job.site, job.worker)


def _close(job: Job) -> None:
    """Close runs that dead processes left open, and tell Prefect what it did not hear."""
    record = processes.read_record(job.site, job.worker)
    works = record is not None and processes.is_running(record)
    for line in [*reconcile(job.site), *([] if works else close_unbegun(job.site, job.pool))]:
        job.say(line)


def _look(job: Job, news: News, *, outage: bool = False) -> None:
    """Apply the policies of the schedules, resume runs that died, and look for news; what fails is tried again."""
    from prefect.client.orchestration import get_client

    if not job.schedules:
        return
    try:
        with get_client(sync_client=True) as client:
            for line in [*due.look(client, job.pool, outage=outage), *news.look(client, job.pool)]:
                job.say(line)
    except Exception as error:  # `kdq serve` goes on: its next look may find a server that answers
        logging.getLogger(__name__).warning("could not look at the schedules: %s", error)


def _prepare(job: Job, api: str) -> None:
    apply_environment(job.site, api)
    ensure_pool(job.pool)
    ensure_zombie_automation()


def _watch(job: Job, api: str, stop: threading.Event, lines: RunLines, news: News) -> None:
    """Restart the worker whenever it dies, after longer waits each time; restart the site's server; report runs.

    A run goes on while its worker or its server is away. Before a new worker starts, KDQ closes the runs that died with
    the old one, resumes them, and skips what was missed.
    """
    wait, since, looked = LOOK_SECONDS, time.monotonic(), 0.0
    site, worker = job.site, cast("ProcessRecord | None", None)
    while not stop.is_set():
        if worker is None or not processes.is_running(worker):
            if worker is not None:
                lived = time.monotonic() - since
                wait = LOOK_SECONDS if lived > HEALTHY_SECONDS else min(wait * 2, LONGEST_WAIT)
                job.say(
                    f"the worker died after {lived:.0f} s; starting another in {wait:g} s; its log is {worker.log!r}"
                )
                if stop.wait(wait):
                    return
            _close(job)
            _look(job, news, outage=True)
            worker, fresh = start_worker(job, api)
            since = looked = time.monotonic()
            job.say(f"worker {worker.pid} {'started' if fresh else 'taken over'}")
        stop.wait(LOOK_SECONDS)
        if site.prefect_api is None and not _own_server_runs(site) and not stop.is_set():
            api = _restart_server(job, news) or api
        lines.look()
        if time.monotonic() - looked > SCHEDULES_SECONDS and not stop.is_set():
            looked = time.monotonic()
            _look(job, news)


def _own_server_runs(site: Site) -> bool:
    record = processes.read_record(site, PREFECT)
    return record is not None and processes.is_running(record)


def _restart_server(job: Job, news: News) -> str | None:
    """Start the server again. The worker and its run go on, unless another process took the server's port meanwhile."""
    job.say("the Prefect server died; starting it again")
    try:
        api, _ = ensure_prefect(job.site)
        _prepare(job, api)
    except KdqError as error:
        job.say(f"the Prefect server does not start: {error}")
        return None
    _end_strange_worker(job, api)
    _close(job)
    _look(job, news, outage=True)
    return api


def start_worker(job: Job, api: str) -> tuple[ProcessRecord, bool]:
    """The process worker as a managed process with the environment of the site, and whether this call started it."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", job.pool, "--type", "process"]
    command += ["--limit", str(job.at_once), "--name", f"kdq-{host()}-{job.worker}"]
    environment = site_environment(job.site) | prefect_environment(job.site, api)
    return processes.ensure(job.site, Managed(job.worker, lambda _port: command, lambda _port: environment))


def ensure_zombie_automation() -> None:
    """Make Prefect close flow runs of any host that send no heartbeat for 90 s. Call `apply_environment` first.

    A known bug of Prefect: this can also mark a run that has just finished. KDQ is safe from it, because it reads
    results from the store and never from Prefect's states.
    """
    from datetime import timedelta

    from prefect.automations import AutomationCore, EventTrigger
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import Posture

    run = "prefect.flow-run"
    ends = {f"{run}.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    automation = AutomationCore(
        name=ZOMBIES,
        trigger=EventTrigger(
            after={f"{run}.heartbeat"},
            expect={f"{run}.heartbeat", *ends},
            match={"prefect.resource.id": [f"{run}.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=90),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat for 90 s")],
    )
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(ZOMBIES):
            client.create_automation(automation)


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Make SIGTERM and SIGINT set `stop`; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
