"""The report of one run as Markdown: table, gates, what runs in float, and the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdq_flows.facts.coverage import float_lines
from kdq_flows.facts.result import RunResult, line_of


def report(result: RunResult, recipe: str) -> str:
    """Write the report.

    Args:
        result: the facts of the run.
        recipe: the recipe as YAML.
    """
    return "\n".join(_lines(result, recipe)) + "\n"


def _lines(result: RunResult, recipe: str) -> Iterator[str]:
    yield f"# {result.run}"
    yield ""
    yield f"{result.status} in {result.seconds:.1f} s{f'. {result.verdict}' if result.verdict else ''}"
    if result.table:
        columns = list(dict.fromkeys(name for row in result.table for name in row))
        yield ""
        yield _row(columns)
        yield _row(["---"] * len(columns))
        for row in result.table:
            yield _row([row.get(name) for name in columns])
    notes = [*map(line_of, result.gains), *result.notes]
    notes += [
        f"gate {'met' if one.met else 'NOT met'}: {one.rule}"
        f" ({'not measured' if one.value is None else f'it is {one.value:.6g}'})"
        for one in result.gates
    ]
    notes += [f"in float: {line}" for line in float_lines(result.coverage)]
    if result.artifact:
        notes.append(f"file: {result.artifact.bytes:,} bytes, sha256 {result.artifact.sha256}")
        notes.append(f"the file takes {', '.join(result.artifact.inputs)}")
    if notes:
        yield ""
        yield from (f"- {note}" for note in notes)
    yield ""
    yield "## Recipe"
    yield ""
    yield f"```yaml\n{recipe}```"


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |"


def yaml_of(recipe: Mapping[str, Any]) -> str:
    """A recipe as YAML."""
    import yaml

    text: str = yaml.safe_dump(dict(recipe), sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)
    return text
