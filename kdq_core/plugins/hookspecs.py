"""The pluggy hooks. Plug-in hooks name plug-ins; lifecycle hooks watch a run, or veto a promotion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pluggy

from kdq_core.frozen import Frozen
from kdq_core.store.records import EvaluationReport

API_VERSION = 1
"""A plug-in module may state `KDQ_PLUGIN_API = ">=1,<2"`; KDQ quarantines it outside that range."""

hookspec = pluggy.HookspecMarker("kdq")
hookimpl = pluggy.HookimplMarker("kdq")


class PluginSpec(Frozen):
    """One plug-in: its kebab-case name, and the path of its class, which the hook need not import.

    `target` is `package.module:Class`; `summary` is one line for `kdq plugins list`.
    """

    name: str
    target: str
    summary: str = ""


class ReportSection(Frozen):
    """A section that a plug-in adds to the page of a run.

    `html` stands in the page as it is: it must load nothing, and needs no script. The page's classes `table-wrap`
    (around a table), `note`, and `num` (cells with numbers) give it the page's looks.
    """

    title: str
    html: str


@hookspec
def kdq_workloads() -> Iterable[PluginSpec]:  # type: ignore[empty-body]
    """Yield the workloads this distribution brings."""


@hookspec
def kdq_distillers() -> Iterable[PluginSpec]:  # type: ignore[empty-body]
    """Yield the distillers this distribution brings."""


@hookspec
def kdq_quantizers() -> Iterable[PluginSpec]:  # type: ignore[empty-body]
    """Yield the quantizers this distribution brings."""


@hookspec
def kdq_targets() -> Iterable[PluginSpec]:  # type: ignore[empty-body]
    """Yield the targets this distribution brings."""


@hookspec
def kdq_evaluators() -> Iterable[PluginSpec]:  # type: ignore[empty-body]
    """Yield the evaluators this distribution brings."""


@hookspec
def kdq_stages() -> Iterable[PluginSpec]:  # type: ignore[empty-body]
    """Yield the stages this distribution brings."""


@hookspec
def kdq_stage_started(recipe: str, stage: str, key: str) -> None:
    """A stage begins to run (it was not cached)."""


@hookspec
def kdq_stage_finished(
    recipe: str, stage: str, key: str, digest: str, seconds: float, files: Mapping[str, Path]
) -> None:
    """A stage has written its entry to the store: `files` are those of the entry by name, to read."""


@hookspec
def kdq_stage_failed(recipe: str, stage: str, key: str, error: str) -> None:
    """A try of a stage failed; after a transient error another try may follow."""


@hookspec
def kdq_run_finished(run: Any) -> None:
    """A run has ended, well or badly, or a branch of one: `run` is its `FinishedRun`."""


@hookspec
def kdq_before_promotion(name: str, version: int, report: EvaluationReport) -> Iterable[str]:  # type: ignore[empty-body]
    """Yield reasons against promoting this version; any reason vetoes it."""


@hookspec
def kdq_after_promotion(name: str, version: int, alias: str, before: int | None, kind: str, entry: str) -> None:
    """An alias moved from version `before` to `version`: `kind` is move, force or rollback; `entry` is its digest."""


@hookspec
def kdq_wrap_key(kms: str, key: bytes) -> bytes | None:
    """Let the key service `kms` encrypt a file's key (32 bytes); `None` if the name is another plug-in's."""


@hookspec
def kdq_unwrap_key(kms: str, wrapped: bytes) -> bytes | None:
    """Let the key service `kms` decrypt what `kdq_wrap_key` gave; `None` if the name is another plug-in's."""


@hookspec
def kdq_report_sections(view: Any, result: Any) -> Iterable[ReportSection]:  # type: ignore[empty-body]
    """Yield sections for the page of a run: `view` is its `RunView`, `result` its `RunResult`."""
