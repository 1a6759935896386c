"""One run of a study: KDQ runs each node of its plan once, branch after branch, and then selects.

A failed branch stops no other. After each branch KDQ writes the facts so far to `KDQ_HOME/studies/<run>.json`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from kdq_core.errors import KdqError, StageError
from kdq_core.plan.part import Part
from kdq_core.plan.study import PlannedBranch, SharedNode, StudyPlan, groups_of
from kdq_core.reading.studies import Branch, Study
from kdq_core.recipe.spec import Site
from kdq_core.store.records import EvaluationReport
from kdq_core.store.store import Entry
from kdq_flows.facts.parts import StageFacts
from kdq_flows.facts.result import RunResult
from kdq_flows.facts.selecting import Measured, select
from kdq_flows.facts.study import BranchFacts, SelectedFacts
from kdq_flows.facts.uploader import Uploader
from kdq_flows.observer import Observer, Silent
from kdq_flows.report.page import command
from kdq_flows.report.tables import study_page
from kdq_flows.run.branch import BranchPipeline
from kdq_flows.run.branches import OF_STUDY, BranchObserver, facts_of
from kdq_flows.run.executors import Executor, Here
from kdq_flows.run.leases import most_at_once
from kdq_flows.run.logs import claimed_name, keep
from kdq_flows.run.pipeline import Pipeline
from kdq_flows.run.shared import Shared
from kdq_flows.run.signals import interrupted_in
from kdq_flows.run.warm import work_ahead

Start = Callable[[Pipeline, SharedNode, Mapping[str, str]], "Future[Any]"]
"""Starts a node in the pipeline of its first branch, with the digests of its parents by name of the stage."""


class StudyRun:
    """The state of one run of a study in this process.

    Attributes:
        name: of the run.
        study: what was asked.
        site: where it runs.
        pipelines: the run of each branch, by its name.
        plan: the plans of all branches; equal nodes are one.
        planned: the branches with their plans, in order.
        executor: runs the heavy stages.
        stages: how each node ended, by identity.
        refused: proposals of a search that are no valid recipe, by name.
        selected: the selection among the branches that are done.
        file: where the facts are kept.
        links: addresses of the web pages that are up.
        done: whether all of it has run, well or badly.
        stopped: whether somebody interrupted the run.
    """

    def __init__(
        self,
        study: Study,
        site: Site,
        observer: Observer | None = None,
        name: str | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.study, self.site = study, site
        self.observer: Observer = observer or Silent()
        self.name = name or claimed_name(study.name, site)
        self.pipelines: dict[str, BranchPipeline] = {}
        self.file: Path = site.home / "studies" / f"{self.name}.json"
        self.done = self.stopped = False
        self.refused: dict[str, BranchFacts] = {}
        self.links: dict[str, str] = {}
        self.uploader = Uploader(site, self.observer.message)
        self._own = Here(site, most_at_once(site))
        self.executor = executor or self._own
        self.shared, self._said = Shared(uploader=self.uploader, executor=self.executor), set[str]()
        self._began = time.monotonic()
        self.stages: dict[str, StageFacts] = {}
        self._failed: dict[str, KdqError] = {}
        self._entries: dict[str, Entry] = {}
        self._told: dict[str, BranchFacts] = {}
        self._prefect: str | None = None
        self.selected: SelectedFacts | None = None
        self.planned: list[PlannedBranch] = []
        self.plan = StudyPlan(study.name, ())
        for branch in study.branches:
            self.add(branch)

    def add(self, branch: Branch) -> None:
        """Plan one more branch.

        Raises:
            KdqError: it cannot be planned.
        """
        tags = {"kdq.study": self.name, "kdq.branch": branch.name}
        observer = BranchObserver(self.observer, lambda stage: self._title(branch.name, stage), self._said)
        run = f"{self.name}.{branch.name}"
        pipeline = BranchPipeline(branch.recipe, self.site, observer, run, shared=self.shared, tags=tags)
        pipeline.left_out = frozenset(node.name for node in pipeline.plan.nodes if node.gives == "version")
        self.pipelines[branch.name] = pipeline
        pipeline.tracking.prefect = self._prefect
        planned = PlannedBranch(branch.name, branch.axes, pipeline.plan)
        for title, identity in planned.identities.items():
            if identity in self._entries:  # a branch of a search joins those that have run
                pipeline.adopt(title, self._entries[identity])
            elif identity in self._failed:
                pipeline.give_up(title, self._failed[identity])
        self.planned.append(planned)
        self.plan = StudyPlan(self.study.name, tuple(self.planned))

    def shown_at(self, prefect: str | None) -> None:
        """Tell all branches the address of the flow run's page in Prefect, if there is one; before the first stage."""
        self._prefect = prefect
        for pipeline in self.pipelines.values():
            pipeline.tracking.prefect = prefect

    def take_part(self, part: Part) -> None:
        """Run a part of every branch only.

        Raises:
            RecipeError: a stage or branch of the part does not exist, or reads a result that is not in the store.
        """
        part.check({planned.name: planned.plan for planned in self.planned})
        for name, pipeline in self.pipelines.items():
            pipeline.take_part(part, name)
            for stage, entry in pipeline.entries.items():
                self._entries[self.plan.branch(name).identities[stage]] = entry

    def warm_up(self) -> None:
        """Let the executor begin what takes long before the first stage, if a heavy stage must run."""
        if any(work_ahead(one.plan, one.store) for one in self.pipelines.values()):
            first = next(iter(self.pipelines.values()))
            log = self.site.home / "logs" / self.name / "warm-worker.log"
            self.executor.warm_up(first.plan.recipe, self.shared.catalog, log)

    def run(self, start: Start) -> None:
        """Run all branches, as many nodes at once as the executor takes; then select, and register.

        Args:
            start: starts one node; see `Start`.
        """
        width = self.executor.width
        try:
            self.run_branches(start, width)
            self._choose()
            self.drive(start, width, self._registering(), limited=False)
            self.done = True
        except BaseException as error:
            if isinstance(error, KdqError) or not isinstance(error, Exception):  # if only the Prefect server is lost,
                self.stop(interrupted=isinstance(error, KeyboardInterrupt))  # the branches may finish
            raise
        finally:
            self._keep()

    def stop(self, *, interrupted: bool) -> None:
        """End the stages that run; `interrupted`: because somebody interrupted the run."""
        self.stopped = interrupted
        for pipeline in self.pipelines.values():
            if interrupted and not pipeline.complete:
                pipeline.stop()
            pipeline.cancel()

    @property
    def interrupted(self) -> list[str]:
        """The nodes that were interrupted, in the order of the branches."""
        return [self._title(name, stage) for name, one in self.pipelines.items() for stage in one.interrupted]

    def run_branches(self, start: Start, width: int) -> None:
        """Run the branches up to their registration."""
        self.drive(start, width, self.unregistered(), limited=True)

    def run_inline(self) -> None:
        """Run all branches in this process, without Prefect."""
        with ThreadPoolExecutor(max_workers=self.executor.width, thread_name_prefix="kdq-study") as pool:
            self.run(lambda pipeline, one, parents: pool.submit(pipeline.try_stage, one.node.name, parents))

    def check(self) -> None:
        """Check the branches before anything runs, also their graphs and models; of those with another seed, one.

        Raises:
            KdqError: a stage of a branch refuses it; the message names the branch.
        """
        ahead = [one for one in self.planned if work_ahead(one.plan, self.pipelines[one.name].store)]
        for planned, *_ in groups_of(ahead):
            pipeline = self.pipelines[planned.name]
            if planned is self.planned[0]:
                continue  # its first stage does it
            try:
                pipeline.check_ahead()
            except KdqError as error:
                raise type(error)(f"branch {planned.name}: {error}") from error

    def unregistered(self) -> list[SharedNode]:
        """All nodes but those that register, which wait for the selection; no more branches than the limit allows."""
        limits = self.study.spec.limits
        most = len(self.planned) if limits is None or limits.trials is None else limits.trials
        allowed = {branch.name for branch in self.planned[:most]}
        return [one for one in self.plan.nodes.values() if {*self._wanting(one)} & allowed]

    def _wanting(self, one: SharedNode) -> list[str]:
        """The branches of a node that run it."""
        return [name for name in one.branches if one.node.name not in self.pipelines[name].left_out]

    def _registering(self) -> list[SharedNode]:
        """The nodes that register the chosen branches."""
        if not self.pipelines:
            return []
        asked = next(iter(self.pipelines.values())).plan.recipe.register_as.branches
        selected, names = self.selected, list[str]()
        if asked == "all":
            names = [name for name, pipeline in self.pipelines.items() if not pipeline.failed]
        elif selected is not None and selected.branch is not None:
            names = list(selected.pareto) if asked == "pareto" else [selected.branch]
        for name in names:
            self.pipelines[name].want_all()
        versions = [one for one in self.plan.nodes.values() if one.node.gives == "version"]
        return [one for one in versions if {*self._wanting(one)} & {*names}]

    def drive(self, start: Start, width: int, nodes: list[SharedNode], *, limited: bool) -> None:
        """Run nodes in order, each after its parents.

        Args:
            start: starts one node.
            width: the most nodes that run at once.
            nodes: what to run; KDQ leaves out those that have ended.
            limited: begin no branch after the limit of time.

        Raises:
            Exception: a node could not be run at all; the errors of failed stages are kept.
        """
        ended = self._entries.keys() | self._failed.keys()
        waiting, begun = dict.fromkeys(one.identity for one in nodes if one.identity not in ended), set[str]()
        running: dict[Future[Any], SharedNode] = {}
        known = {one.identity: one for one in nodes}
        while waiting or running:
            for identity in list(waiting):
                if len(running) >= width:
                    break
                one = known[identity]
                if any(parent in self._failed for parent in one.parents):
                    waiting.pop(identity)
                    parent = next(parent for parent in one.parents if parent in self._failed)
                    self._ended(one, self._failed[parent])
                elif all(parent in self._entries for parent in one.parents):
                    waiting.pop(identity)
                    if limited and self.late() and not {*self._wanting(one)} & begun:
                        continue
                    begun.add(self._wanting(one)[0])
                    running[self._started(start, one)] = one
                elif not running and not any(parent in waiting for parent in one.parents):
                    waiting.pop(identity)  # a limit left out what it reads
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                one = running.pop(future)
                error = future.exception()
                if error is not None and not isinstance(error, KdqError):
                    raise error
                self._ended(one, error)

    def _title(self, branch: str, stage: str) -> str:
        identity = self.plan.branch(branch).identities.get(stage, "")
        return self.plan.nodes[identity].title if identity else stage

    def late(self) -> bool:
        """Whether the limit of time is reached."""
        limits = self.study.spec.limits
        seconds = None if limits is None else limits.seconds
        return seconds is not None and time.monotonic() - self._began >= seconds

    def _started(self, start: Start, one: SharedNode) -> Future[Any]:
        pipeline = self.pipelines[self._wanting(one)[0]]
        return start(pipeline, one, pipeline.digests_for(one.node))

    def _ended(self, one: SharedNode, error: KdqError | None) -> None:
        """Tell all branches that a node serves of its end."""
        first = self.pipelines[self._wanting(one)[0]]
        if error is not None:
            self._failed[one.identity] = error
        else:
            self._entries[one.identity] = first.entries[one.node.name]
        mine = first.stages.get(one.node.name)
        if mine is not None:
            self.stages[one.identity] = mine.model_copy(update={"name": one.title})
        for name in one.branches:
            pipeline, planned = self.pipelines[name], self.plan.branch(name)
            title = next(title for title, identity in planned.identities.items() if identity == one.identity)
            if error is not None:
                pipeline.give_up(title, error)
            elif pipeline is not first:
                pipeline.adopt(title, self._entries[one.identity])
            if pipeline.complete:
                pipeline.write_page()
                self._told[name] = facts_of(planned, pipeline)
                self._keep()

    def _choose(self) -> None:
        spec = self.study.spec.select
        if spec is None:
            return
        self.selected = select(spec, list(self.measured()))

    def measured(self) -> Iterator[Measured]:
        """The branches that were measured."""
        for planned in self.planned:
            pipeline = self.pipelines[planned.name]
            report = pipeline.view.record("report", EvaluationReport)
            if report is not None and not pipeline.failed:
                yield Measured(planned.name, planned.axes, report)

    def _keep(self) -> None:
        """Write the facts so far with the best branch so far, and their page; each whole or not at all."""
        self._choose()
        facts = self.facts()
        keep(facts.model_dump_json(indent=1), self.file)
        reports = {name: one.view.record("report", EvaluationReport) for name, one in self.pipelines.items()}
        known = {name: report for name, report in reports.items() if report is not None}
        keep(study_page(facts, known, command(self.site, self.study.name)), self.page)

    @property
    def page(self) -> Path:
        """The page of the study."""
        return self.file.with_suffix(".html")

    def finish(self) -> None:
        """Close the tracking runs, and the executor if it is the study's own."""
        for pipeline in self.pipelines.values():
            pipeline.finish()
        self.uploader.close()
        self._own.close()

    @property
    def seconds(self) -> float:
        """Wall-clock time so far."""
        return round(time.monotonic() - self._began, 3)

    def facts(self) -> RunResult:
        """The facts so far; what is about one model comes from the selected branch."""
        best = None if self.selected is None else self.selected.branch
        base = {} if best is None else dict(self.pipelines[best].facts())
        stages, error = tuple(self.stages.values()), self.error
        quiet = bool(stages) and self.unmet is None and all(stage.state == "cached" for stage in stages)
        return RunResult(
            **({"models": {}} | {name: value for name, value in base.items() if name not in OF_STUDY}),
            run=self.name,
            status="interrupted" if self.stopped else "failed" if error else "no-news" if quiet else "completed",
            seconds=self.seconds,
            stages=stages,
            error=interrupted_in(self.interrupted) if self.stopped else str(error) if error else self.unmet,
            links=self.links,
            report=str(self.page),
            branches=(*map(self._facts_of, self.planned), *self.refused.values()),
            selected=self.selected,
        )

    def _facts_of(self, planned: PlannedBranch) -> BranchFacts:
        return self._told.get(planned.name) or facts_of(planned, self.pipelines[planned.name])

    @property
    def unmet(self) -> str | None:
        """The verdict if no branch meets the goals; `None` if one does, or if the study has not chosen yet."""
        return None if self.selected is None or self.selected.branch is not None else self.selected.verdict

    @property
    def error(self) -> KdqError | None:
        """Says which branches failed, with the first error; `None` if none did."""
        failed = {name: one.error for name, one in self.pipelines.items() if one.error is not None}
        if not failed:
            return None
        name, first = next(iter(failed.items()))
        return StageError(f"{len(failed)} of {len(self.pipelines)} branches failed; {name}: {first}")
