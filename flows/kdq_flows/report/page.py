"""The page of a run: one HTML file with everything in it, which loads nothing and needs no script."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.plan.precision import precision_of
from kdq_core.plan.view import RunView
from kdq_core.plugins.hookspecs import ReportSection
from kdq_core.recipe.spec import Site
from kdq_flows.facts.report import yaml_of
from kdq_flows.facts.result import RunResult, line_of
from kdq_flows.report import answers, kept, numbers, overview

if TYPE_CHECKING:
    import jinja2

    from kdq_core.plugins.catalog import Catalog
    from kdq_core.work.effects import Explained
    from kdq_flows.report.kept import RunRecord

log = logging.getLogger("kdq")
FIRST = 60
"""Rows of a long table that are open; the others are behind a line to click."""


@dataclass(frozen=True)
class Guests:
    """What plug-ins add: their sections, and the reasons of those that failed."""

    sections: tuple[ReportSection, ...] = ()
    failures: tuple[str, ...] = ()


def page(record: RunRecord, view: RunView, catalog: Catalog, effects: Explained | None = None) -> str:
    """Make the page.

    Args:
        record: the run as it is kept.
        view: the run, with the entries that the store has.
        catalog: the plug-ins, which may add sections.
        effects: what `kdq explain` found in the run, if somebody asked.
    """
    result = record.result
    parts: dict[str, Callable[[], Any]] = {
        "tiles": lambda: overview.tiles(view, result),
        "charts": lambda: overview.model_charts(view),
        "curves": lambda: overview.curves(view),
        "layers": lambda: overview.layers(view),
        "measured": lambda: overview.measurements(view),
        "robust": lambda: overview.robustness(view),
        "answers": lambda: _answers(view),
    }
    given = _safely(parts)
    rows, paths = overview.stage_rows(view, result)
    return environment().get_template("report.html.j2").render(
        given[0], result=result, title=result.run, recipe_name=view.plan.recipe.name, made=_when(record.began),
        stages=rows, paths=paths, gutter=overview.GUTTER, row_height=overview.LINE,
        gains=[(line_of(gain), gain.verdict) for gain in result.gains],
        models=overview.titles_of(view), guests=guests(catalog, view, result), failures=given[1],
        gone=[s.name for s in result.stages if s.state not in ("failed", "interrupted") and s.name not in view.entries],
        recipe=record.recipe, surroundings=surroundings(view), command=command(view.plan.site, view.plan.recipe.name),
        first=FIRST, effects=effects, rules=_rules(effects),
    )  # fmt: skip


def written(site: Site, record: RunRecord, view: RunView, catalog: Catalog) -> tuple[Path, str]:
    """Keep the record of a run and its page; gives the path of the page, and the page.

    Raises:
        StoreError: the home cannot be written.
    """
    kept.keep(site, record)
    html = page(record, view, catalog)
    return kept.keep_page(site, record.result.run, html), html


def guests(catalog: Catalog, view: RunView, result: RunResult) -> Guests:
    """Ask every plug-in for sections; one that raises or gives something else is named, and stops no other."""
    sections: list[ReportSection] = []
    failures: list[str] = []
    for distribution, given, reason in catalog.each("kdq_report_sections", view=view, result=result):
        failures += [reason] if reason else []
        for answer in given:
            for section in answer if isinstance(answer, Iterable) and not isinstance(answer, str) else [answer]:
                if isinstance(section, ReportSection):
                    sections.append(section)
                else:
                    failures.append(
                        f"plug-in {distribution!r} gave a {type(section).__name__!r} in kdq_report_sections; it must "
                        "yield ReportSection"
                    )
    return Guests(tuple(sections), tuple(failures))


def surroundings(view: RunView) -> list[tuple[str, str]]:
    """What the results depend on beside the recipe: libraries, device, data."""
    libraries: dict[str, str] = {}
    device: Mapping[str, Any] = {}
    data = ""
    for entry in view.entries.values():
        parts: Mapping[str, Any] = entry.manifest.parts
        libraries |= parts.get("libraries") or {}
        device, data = parts.get("device") or device, str(parts.get("data") or data)
    from importlib.metadata import version

    found = [("kdq", version("kdq")), *sorted(libraries.items()), *((k, str(v)) for k, v in device.items())]
    return [*found, *([("data (sha256)", data[:16])] if data else []), ("seed", str(view.plan.recipe.seed))]


def command(site: Site, recipe: str) -> str:
    """What to type to make the run again."""
    asked = {"KDQ_DEVICE": site.device, "KDQ_THREADS": str(site.threads), "KDQ_PRECISION": precision_of(site)}
    return f"{' '.join(f'{name}={value}' for name, value in asked.items())} kdq run {recipe}.yaml"


def environment() -> jinja2.Environment:
    """The templates of this folder; text is escaped."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("kdq_flows.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    made.globals |= {"number": numbers.number, "interval": numbers.interval, "seconds": numbers.seconds}
    return made


def _answers(view: RunView) -> dict[str, Any]:
    titles = overview.titles_of(view)
    samples = answers.samples_of(view, titles)
    found = answers.answers_of(view)
    if found is None:
        return {"samples": samples, "matrix": [], "pairs": [], "classes": [], "reliability": None, "known": 0}
    matrix, pairs = answers.changed_cells(found)
    chart = answers.reliability(found, titles, overview.STYLES)
    return {
        "samples": samples, "matrix": matrix, "pairs": pairs, "classes": answers.changed_classes(found),
        "reliability": chart, "known": len(found.rows),
    }  # fmt: skip


def _rules(effects: Explained | None) -> str:
    """The rules that `kdq explain` proposes, as a recipe writes them."""
    found = () if effects is None else effects.rules
    return yaml_of({"rules": [rule.model_dump(mode="json", exclude_none=True) for rule in found]}) if found else ""


def _safely(parts: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Make each part; one that fails is left out and named, so that no odd record costs the whole page."""
    made: dict[str, Any] = {}
    failures = []
    for name, make in parts.items():
        try:
            made[name] = make()
        except Exception as error:
            log.warning("the report's part %r failed", name, exc_info=True)
            failures.append(f"KDQ could not make the part {name!r}: {type(error).__name__}: {error}")
            made[name] = None
    return made, tuple(failures)


def _when(began: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(began))
