"""One run of a search: Optuna proposes a branch, KDQ runs it, and tells Optuna what it gave."""

from __future__ import annotations

import math

from kdq_core.errors import KdqError, RecipeError
from kdq_core.plan.part import Part
from kdq_core.plan.study import StudyPlan
from kdq_core.reading.matrix import names_of
from kdq_core.reading.studies import Branch, Study, branch_recipe
from kdq_core.recipe.spec import Site
from kdq_core.recipe.study import Axes
from kdq_flows.facts.selecting import Measured, judged
from kdq_flows.facts.study import BranchFacts
from kdq_flows.observer import Observer
from kdq_flows.run.executors import Executor
from kdq_flows.run.searching import Searcher
from kdq_flows.run.study import Start, StudyRun


class SearchRun(StudyRun):
    """A study whose branches Optuna proposes."""

    def take_part(self, part: Part) -> None:  # noqa: ARG002
        """Refuse it: what a branch gives decides which branch comes next.

        Raises:
            RecipeError: always.
        """
        raise RecipeError("a search runs whole; leave --only, --from, --until and --refresh out, or write a matrix")

    def run_branches(self, start: Start, width: int) -> None:
        """Run one proposal after the other, until a limit or the end of a grid; those of earlier runs come first."""
        spec, select_by = self.study.spec, self.study.spec.select
        assert spec.search is not None and select_by is not None  # noqa: PT018 - the file was checked
        searcher = Searcher(spec.search, select_by, self.study.document.value, self.site.home)
        tries, most = 0, math.inf if spec.limits is None or spec.limits.trials is None else spec.limits.trials
        for axes in searcher.known():
            tries += 1
            self._tried(start, width, axes)
        if tries >= most:
            said = f"{tries} trials were done before, and 'limits.trials' is {most:g}; raise it to go on"
            self.observer.message(said)
        while not searcher.exhausted and not self.late() and tries < most:
            trial, axes = searcher.ask()
            tries += 1
            measured = self._tried(start, width, axes)
            if measured is None:
                searcher.tell(trial, None, {})
                continue
            values, short = judged(select_by, measured)
            good = all(map(math.isfinite, values))
            searcher.tell(trial, values if good else None, short)

    def _tried(self, start: Start, width: int, axes: Axes) -> Measured | None:
        """Run the branch of a proposal; `None` if it failed. An equal proposal is not run again."""
        name = names_of([axes])[0]
        if name in self.refused:
            return None
        if name not in self.pipelines:
            try:
                recipe = branch_recipe(self.study.document, axes, self.shared.catalog, files=True, section="search")
                self.add(Branch(name, axes, recipe))
                self.warm_up()
                self.pipelines[name].check_ahead()
            except KdqError as error:
                self.refused[name] = BranchFacts(branch=name, axes=axes, status="failed", error=str(error))
                self._drop(name)
                return None
            self.drive(start, width, self.unregistered(), limited=False)
        return next((one for one in self.measured() if one.name == name), None)

    def _drop(self, name: str) -> None:
        if self.pipelines.pop(name, None) is not None:
            self.planned.pop()
            self.plan = StudyPlan(self.study.name, tuple(self.planned))


def study_run(
    study: Study,
    site: Site,
    observer: Observer | None = None,
    name: str | None = None,
    executor: Executor | None = None,
) -> StudyRun:
    """A run of a matrix or of a search, with this name or a new one."""
    return (StudyRun if study.spec.search is None else SearchRun)(study, site, observer, name, executor)
