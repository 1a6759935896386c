"""One run of a plan: KDQ looks each stage up in the store, or computes it and puts it there.

Prefect tasks and the plain loop of `--no-server` both call `Pipeline.run_stage`, so both give the same results.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdq_core.errors import KdqError
from kdq_core.plan.lock import SUFFIX, Lock, locked
from kdq_core.plan.part import Part, check_reads
from kdq_core.plan.plan import Node, Plan, make_plan
from kdq_core.plan.view import RunView
from kdq_core.plugins.stage import Stage
from kdq_core.plugins.wiring import listed
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store import open_store
from kdq_core.store.store import Entry
from kdq_flows.facts.gathered import gathered
from kdq_flows.facts.parts import StageFacts
from kdq_flows.facts.report import report, yaml_of
from kdq_flows.facts.result import RunResult
from kdq_flows.facts.tracking import RunTracking
from kdq_flows.facts.uploader import Uploader
from kdq_flows.observer import Observer, Silent
from kdq_flows.report import kept
from kdq_flows.report.live import Live
from kdq_flows.report.page import written
from kdq_flows.run.ahead import ChecksAhead
from kdq_flows.run.executors import Here, answer_of, entry_of
from kdq_flows.run.hearing import Ears, Hearing
from kdq_flows.run.here import here, tracked_run
from kdq_flows.run.lifecycle import Lifecycle
from kdq_flows.run.logs import failure, keep, logged, name_of
from kdq_flows.run.node import Heard, NodeAnswer
from kdq_flows.run.retrying import call_with_retries
from kdq_flows.run.shared import Shared
from kdq_flows.run.signals import interrupted_in
from kdq_flows.run.supervisor import StageCancelledError, refuse_cancelled
from kdq_flows.run.teachers import resolved
from kdq_flows.run.warm import work_ahead

if TYPE_CHECKING:
    from kdq_registry.fetching import Fetched

BAD: dict[bool, Literal["failed", "interrupted"]] = {False: "failed", True: "interrupted"}


class Pipeline:
    """The state of one run in this process; thread-safe.

    Attributes:
        name: name of the run in Prefect and MLflow, and of its folder of logs.
        plan: the stages and their keys.
        observer: hears of stages, progress and messages.
        entries: verified store entries of the finished stages.
        cancelled: whether somebody called `cancel`.
        executor: runs the heavy stages.
        stopped: whether somebody interrupted the run.
        errors: errors of the failed stages, by stage.
        left_out: stages that this run need not run, such as the registration of a branch that is not selected.
    """

    def __init__(
        self,
        recipe: Recipe,
        site: Site,
        observer: Observer | None = None,
        name: str | None = None,
        *,
        tracked: bool = True,
        shared: Shared | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Plan a run.

        Args:
            recipe: what to run.
            site: where.
            observer: hears of stages, progress and messages.
            name: of the run; by default the recipe's name and the time.
            tracked: send it to MLflow.
            shared: what it has in common with the other branches of a study.
            tags: further tags of its run in MLflow.

        Raises:
            KdqError: the recipe cannot be planned.
        """
        shared = shared or Shared()
        self.catalog = shared.catalog
        self.observer: Observer = observer or Silent()
        teachers: dict[str, Fetched] = {}
        fetch = partial(resolved, recipe, site, teachers.__setitem__, shared.fetched)
        found = call_with_retries(fetch, recipe.retry, on_retry=self._tried)
        self._teachers = {str(meant.path): f"{meant.name}/{meant.version}" for meant in teachers.values()}
        words = [f"{asked} is {meant.said}" for asked, meant in teachers.items()]
        for line in words:
            self.observer.message(f"teacher {line}")
        self.plan: Plan = make_plan(found, site, self.catalog, shared.memo)
        self.entries: dict[str, Entry] = {}
        self.errors: dict[str, KdqError] = {}
        self.cancelled, self.stopped = threading.Event(), False
        self._own = Here(site)
        self.executor = shared.executor or self._own
        self.name = name or name_of(recipe.name)
        self.store, self.logs = open_store(site), site.home / "logs" / self.name
        said = {f"kdq.teacher.{n}": line for n, line in enumerate(words, 1)} | dict(tags or {})
        self._uploader = None if shared.uploader else Uploader(site, self.observer.message)
        self.tracking = RunTracking(self.plan, self.name, said, shared.uploader or self._uploader if tracked else None)
        self.left_out, self._not_asked = frozenset[str](), frozenset[str]()
        self._ahead, self._of_others = ChecksAhead(), set[str]()
        self._facts: dict[str, StageFacts] = {}
        self._began, self._started = time.monotonic(), time.time()
        self._asked = yaml_of(recipe.model_dump(mode="json", by_alias=True, exclude_unset=True))
        self._page: Path | None = None
        self._lifecycle = Lifecycle(self.catalog, self.observer, recipe.name)
        self._live = Live(self.plan, self.name, self.observer.message)
        self._ears = Ears(self.observer, self.tracking, self._live, self._lifecycle)
        if self.plan.note:
            self.observer.message(self.plan.note)

    def warm_up(self) -> None:
        """Let the executor begin what takes long before the first stage, if a heavy stage must run."""
        if work_ahead(self.plan, self.store):
            self.executor.warm_up(self.plan.recipe, self.catalog, self.logs / "warm-worker.log")

    def take_part(self, part: Part, branch: str = "") -> None:
        """Run a part of the plan only; what the other stages gave before must be in the store.

        Raises:
            RecipeError: a stage of the part reads a result that is not in the store.
        """
        self.find()
        for node in part.refreshed(self.plan, branch):
            entry = self.entries.pop(node.name, None)
            if entry is not None:
                self.store.discard(entry.manifest.key)
        self._not_asked = frozenset(node.name for node in self.plan.nodes) - part.wanted(self.plan, branch)
        self.left_out |= self._not_asked
        check_reads(self.plan, self.left_out, self._not_asked, self.entries)
        self.entries = {name: entry for name, entry in self.entries.items() if name in self.left_out}

    def run_inline(self, only: Container[str] | None = None) -> None:
        """Run unfinished stages in the order of the plan, with retries; afterwards `errors` says which failed.

        Args:
            only: names of the stages to run; by default all.
        """
        for node in self.plan.nodes:
            left_out = node.name in self.left_out or (only is not None and node.name not in only)
            if node.name in self.entries or left_out:
                continue
            try:
                self.try_stage(node.name, self.digests_for(node))
            except KdqError:
                return

    def digests_for(self, node: Node) -> dict[str, str]:
        """Digests of the entries that a stage reads, by name of the stage that gave each."""
        return {name: self.entries[name].digest for name in node.parents.values()}

    def find(self) -> None:
        """Take the entries that the store has already; computes nothing."""
        for node in self.plan.nodes:
            if all(name in self.entries for name in node.parents.values()):
                entry = self.store.lookup(node.key(self.digests_for(node)))
                if entry is not None:
                    self.entries[node.name] = entry

    def try_stage(self, name: str, parents: Mapping[str, str]) -> tuple[str, bool]:
        """Run one stage with retries; see `run_stage`."""
        how, wait = self.plan.recipe.retry_of(name), self.cancelled.wait
        return call_with_retries(lambda: self.run_stage(name, parents), how, on_retry=self._tried, sleep=wait)

    def _tried(self, attempt: int, error: BaseException) -> None:
        self.observer.message(f"try {attempt} failed: {error}")

    def run_stage(self, name: str, parents: Mapping[str, str]) -> tuple[str, bool]:
        """Bring one stage's entry into the store.

        Args:
            name: the stage.
            parents: digests of the entries that it reads, by stage.

        Returns:
            The digest of its entry, and whether it was cached.

        Raises:
            KdqError: the stage failed; the store has no entry of it.
        """
        node, began = self.plan.node(name), time.monotonic()
        key = node.key(parents)
        try:
            cached = (entry := self._cached(node, key)) is not None
            entry = entry or self._compute(node, key, parents)
        except BaseException as error:
            self._ended(node, key, BAD[isinstance(error, KeyboardInterrupt | StageCancelledError)], began)
            self.errors[name] = failure(error)
            self._lifecycle.stage("kdq_stage_failed", name, key, error=str(error))
            raise
        self.entries[name] = entry
        self._ended(node, key, "cached" if cached else "shared" if name in self._of_others else "ran", began)
        if not cached:
            self._lifecycle.stage_finished(name, entry, time.monotonic() - began)
        self.errors.pop(name, None)
        return entry.digest, cached

    @property
    def lock(self) -> Lock:
        """All that decides the results of the run, and the files that it gave so far."""
        return locked(self.plan, self.entries, self._teachers)

    @property
    def view(self) -> RunView:
        """The plan with the entries that are finished so far."""
        return RunView(self.plan, dict(self.entries))

    @property
    def error(self) -> KdqError | None:
        """The error of the first failed stage in the order of the plan; `None` if none failed."""
        return next((self.errors[node.name] for node in self.plan.nodes if node.name in self.errors), None)

    @property
    def failed(self) -> bool:
        """Whether a stage failed or the run did not reach it."""
        return bool(self.errors) or not self._wanted <= self.entries.keys()

    @property
    def _wanted(self) -> set[str]:
        return {node.name for node in self.plan.nodes} - self.left_out

    @property
    def stages(self) -> Mapping[str, StageFacts]:
        """How each stage ended so far."""
        return self._facts

    def stop(self) -> None:
        """End the stages that run, because somebody interrupted the run."""
        self.stopped = self.tracking.killed = True
        self.cancel()

    def cancel(self) -> None:
        """End the stages that run."""
        self.cancelled.set()
        self.executor.cancel()

    @property
    def interrupted(self) -> list[str]:
        """The stages that were interrupted."""
        return [name for name, facts in list(self._facts.items()) if facts.state == "interrupted"]

    def finish(self) -> None:
        """Close the tracking run, and the executor if it is the run's own."""
        self._own.close()
        ran = not self.failed and any(one.state == "ran" for one in self._facts.values())
        if (lock := self.lock.model_dump_json(indent=1) if ran else None) is not None:
            keep(lock, self.plan.site.home / "runs" / f"{self.name}{SUFFIX}")
        self._live.close()
        asked = yaml_of(self.plan.recipe.model_dump(mode="json", by_alias=True))
        self.tracking.end(lambda: report(self.facts(), asked), lock, failed=self.failed)
        if self._uploader is not None:
            self._uploader.close()
        self._lifecycle.finished(self.facts, self.view)

    def facts(self, links: Mapping[str, str] | None = None) -> RunResult:
        """The facts of the run so far."""
        failed, bad = self.failed, BAD[self.stopped]
        stages = tuple(self._facts[node.name] for node in self.plan.nodes if node.name in self._facts)
        quiet = not failed and all(stage.state == "cached" for stage in stages)
        return RunResult(
            **gathered(self.view, self.catalog),
            run=self.name,
            status=bad if failed else "no-news" if quiet else "completed",
            seconds=round(time.monotonic() - self._began, 3),
            stages=stages,
            error=self._why if failed else None,
            links=dict(links or {}),
            report=None if self._page is None else str(self._page),
        )

    @property
    def _why(self) -> str:
        stopped = "the run was stopped before its last stage; run it again"
        return interrupted_in(self.interrupted) if self.stopped else str(self.error or stopped)

    def write_page(self) -> None:
        """Write record and page of the run, once; if every stage was cached, find those of the run that computed them.

        A page that cannot be made or written costs a message, and never the run.
        """
        if self._page is not None or not self._facts:
            return
        facts, site = self.facts(), self.plan.site
        try:
            if facts.status == "no-news":
                self._page = kept.same(site, [stage.key for stage in facts.stages])
            if self._page is None:
                record = kept.record_of(facts, self.plan, self._asked, self._started)
                self._page, html = written(site, record, self.view, self.catalog)
                self.tracking.add_page(html)
        except Exception as error:
            logged(error, self.logs / "report.log")
            self.observer.message(f"the report could not be written: {error}; 'kdq report {self.name}' tries again")

    def _cached(self, node: Node, key: str) -> Entry | None:
        entry = self.store.lookup_or_discard(key, self.observer.message)
        if entry is not None and not self._stage(node).still_there(entry.record, self.plan.site):
            self.store.discard(key)
            return None
        return entry

    def _stage(self, node: Node) -> Stage:
        use = next(use for use in listed(self.plan.recipe) if use.title == node.name)
        stage = self.catalog.build("stage", use.use, use.options)
        assert isinstance(stage, Stage)
        return stage

    def _compute(self, node: Node, key: str, parents: Mapping[str, str]) -> Entry:
        hearing = Hearing(self._ears, node, key)
        try:
            entry = (self._in_worker if node.heavy else self._here)(node, key, parents, hearing)
        except BaseException as error:
            hearing.failed(error)
            raise
        hearing.gave(entry.record)
        if hearing.shared:
            self._of_others.add(node.name)
        return entry

    def _request(self, node: Node, key: str, parents: Mapping[str, str]) -> dict[str, Any]:
        """The request to the stage."""
        return self._asking(node) | {
            "key": key,
            "parts": node.full_parts(parents),
            "parents": {port: self.entries[name].manifest.key for port, name in node.parents.items()},
        }

    def _asking(self, node: Node) -> dict[str, Any]:
        """What every request about a stage says."""
        return {"title": node.name, "recipe": self.plan.recipe.model_dump(mode="json")}

    def check_ahead(self) -> None:
        """Check all unfinished stages in a worker before anything runs; otherwise the first heavy stage does it.

        Raises:
            KdqError: a stage refuses the recipe, the data or the models.
        """
        node = next((one for one in self.plan.nodes if one.heavy and one.name not in self.entries), None)
        if node is None or self._ahead.done:
            return
        only = {"key": "", "parts": node.parts, "parents": {}, "only_checks": True}
        how, wait = self.plan.recipe.retry_of(node.name), self.cancelled.wait
        work = partial(self._work, node, self._asking(node) | only, self._ears.hear)
        call_with_retries(work, how, on_retry=self._tried, sleep=wait)

    def _in_worker(self, node: Node, key: str, parents: Mapping[str, str], hearing: Hearing) -> Entry:
        return entry_of(self._work(node, self._request(node, key, parents), hearing.hear), self.store)

    def _work(self, node: Node, stage: dict[str, Any], heard: Heard) -> NodeAnswer:
        """Run a stage in a worker; the first one of the run also checks all unfinished stages."""
        needs, log, store = node.needs.model_dump(), f"{self.name}/{node.name}.log", self.plan.site.store_address
        refuse, waits = partial(refuse_cancelled, self.cancelled), isinstance(self.executor, Here)
        with self._ahead.turn(heard, refuse, waits=waits) as hear:
            later = self.entries.keys() | self.left_out
            checks = [] if self._ahead.done else [one.name for one in self.plan.nodes if one.name not in later]
            request = {"stage": stage | {"checks": checks}, "needs": needs, "log": log, "store": store}
            return answer_of(self.executor, request, hear)

    def _here(self, node: Node, key: str, parents: Mapping[str, str], hearing: Hearing) -> Entry:
        """Run a stage in this process; only for stages with `device="none"`."""
        waits = partial(self.observer.message, f"{node.name} waits: another run computes it")
        with self.store.claim(key, on_wait=waits, check=partial(refuse_cancelled, self.cancelled)):
            if (entry := self._cached(node, key)) is not None:
                hearing.shared = True
                return entry
            hearing.begun()
            told = {
                "site": self.plan.site.model_dump(mode="json"),
                "lineage": self.view.digests,
                "tracking_run": tracked_run(self.tracking, node, self.observer, self.cancelled),
                "lock": self.lock.model_dump_json(indent=1),
            }
            request, log = self._request(node, key, parents) | told, self.logs / f"{node.name}.log"
            return here(request, hearing.hear, catalog=self.catalog, store=self.store, log=log)

    def _ended(self, node: Node, key: str, state: Any, began: float) -> None:
        seconds = round(time.monotonic() - began, 3)
        self._facts[node.name] = StageFacts(name=node.name, key=key, state=state, seconds=seconds)
        self.observer.stage_ended(node.name, state, seconds)
