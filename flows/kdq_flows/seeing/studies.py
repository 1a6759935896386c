"""The page of a study, made anew from its facts and from the store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Site
from kdq_core.store import open_store
from kdq_core.store.records import EvaluationReport
from kdq_flows.facts.result import RunResult
from kdq_flows.report import kept
from kdq_flows.report.page import command
from kdq_flows.report.tables import study_page
from kdq_flows.seeing.runs import find


def page_of_study(site: Site, asked: str) -> tuple[Path, str] | None:
    """The path of a study's page, and the page made anew; `None` if `asked` means no study.

    Args:
        site: its home has the study.
        asked: name of a study; or a recipe's file or name, whose last run is a study.

    Raises:
        RecipeError: another version of KDQ wrote the facts of the study.
    """
    try:
        state = find(site, asked)
    except RecipeError:
        return None
    file = site.home / "studies" / f"{state.run}.json"
    if not file.is_file():
        return None
    try:
        facts = RunResult.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise RecipeError(
            f"the facts of study {state.run!r} cannot be read: {error.errors()[0]['msg']}; another version of KDQ "
            "wrote them. Run the recipe again"
        ) from None
    return file.with_suffix(".html"), study_page(facts, dict(_reports(site, facts)), command(site, state.recipe))


def _reports(site: Site, facts: RunResult) -> Iterator[tuple[str, EvaluationReport]]:
    """Yield the evaluation of each branch whose record and results are still there."""
    store = open_store(site)
    for one in facts.branches:
        with contextlib.suppress(RecipeError):
            report = kept.find(site, one.run).view(store).record("report", EvaluationReport) if one.run else None
            if report is not None:
                yield one.branch, report
