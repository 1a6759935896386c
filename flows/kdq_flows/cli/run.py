"""`kdq run`."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import RecipeFile
from kdq_flows.cli.studies import show_branches, show_part
from kdq_flows.cli.tables import wrap
from kdq_flows.run import pace
from kdq_flows.run.pace import Pace
from kdq_flows.run.signals import interrupted_in, leaving

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from kdq_core.reading.studies import Study
    from kdq_core.recipe.spec import Recipe
    from kdq_flows.facts.result import RunResult


STAGE = "STAGE[@BRANCH]"
Executors = Literal["inline", "threads", "ray", "dask", "pool"]


class Progressing:
    """Shows one bar for each stage on a terminal, and lines elsewhere; writes to stderr."""

    def __init__(self, *, bars: bool) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._lock = threading.Lock()
        self._console = common.console(stderr=True)
        self._bars: dict[str, TaskID] = {}
        self._paces: dict[str, Pace] = {}
        self.begun: list[str] = []
        """The stages that have begun and not ended, or were interrupted."""
        self._progress: Progress | None = None
        if bars:
            self._progress = Progress(
                SpinnerColumn(finished_text="[green]✓"),
                TextColumn("{task.description:14}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
            )

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Show the bars while the run lasts; or look now and then which stage has been silent for too long."""
        if self._progress:
            with self._progress:
                yield
            return
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(pace.PAUSE):
            self.look()

    def look(self) -> None:
        """Print the line of each stage that is due."""
        with self._lock:
            for stage, one in self._paces.items():
                self._tell(stage, one)

    def _tell(self, stage: str, one: Pace) -> None:
        if one.due(now := time.monotonic()):
            self._console.print(f"{stage:14} {one.line(now)}")

    def stage_started(self, stage: str) -> None:
        """Add the stage's bar, or print that it starts."""
        with self._lock:
            self.begun.append(stage)
            self._paces[stage] = Pace(time.monotonic())
            if self._progress is None:
                self._console.print(f"{stage:14} starts")
            elif stage not in self._bars:
                self._bars[stage] = self._progress.add_task(stage, total=None, note="starting")

    def progress(self, event: dict[str, Any]) -> None:
        """Move the stage's bar, or print how far it is."""
        with self._lock:
            stage, now = event.get("stage", ""), time.monotonic()
            one = self._paces.get(stage)
            if one is None:
                return
            one.at(event["done"], event["total"], event["note"], now)
            if self._progress is None:
                self._tell(stage, one)
                return
            note = ", ".join(filter(None, (one.note, one.left(now))))
            self._progress.update(self._bars[stage], completed=event["done"], total=event["total"], note=note)

    def stage_ended(self, stage: str, state: str, seconds: float) -> None:
        """Stop the stage's bar, or print the stage's line."""
        with self._lock:
            if stage in self.begun and state != "interrupted":
                self.begun.remove(stage)
            self._paces.pop(stage, None)
            if self._progress is None:
                self._console.print(f"{stage:14} {state} in {seconds:.1f} s")
                return
            if stage not in self._bars:
                self._bars[stage] = self._progress.add_task(stage, total=1, note="")
            bar = self._bars[stage]
            full = state not in ("failed", "interrupted")
            total = self._progress.tasks[self._progress.task_ids.index(bar)].total or 1
            self._progress.update(bar, total=total, completed=total if full else None, note=state)
            self._progress.stop_task(bar)

    def message(self, text: str) -> None:
        """Print a text above the bars."""
        self._console.print("\n".join(wrap(text, self._console.width)), soft_wrap=True)


def register_commands(app: typer.Typer) -> None:
    """Add `run`."""

    @app.command(rich_help_panel="Run")
    def run(
        file: RecipeFile,
        no_server: Annotated[bool, typer.Option("--no-server", help="Run inline, without Prefect.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")] = False,
        only: Annotated[list[str], typer.Option(metavar=STAGE, help="Run this stage and no other.")] = [],  # noqa: B006
        start: Annotated[
            list[str], typer.Option("--from", metavar=STAGE, help="Run this stage and all that read from it.")
        ] = [],  # noqa: B006
        until: Annotated[
            list[str], typer.Option(metavar=STAGE, help="Run this stage and all that it reads from.")
        ] = [],  # noqa: B006
        refresh: Annotated[
            list[str], typer.Option(metavar=STAGE, help="Throw away what this stage gave, and run it again.")
        ] = [],  # noqa: B006
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
        executor: Annotated[
            Executors | None,
            typer.Option(help="What runs stages that compute; by default KDQ_EXECUTOR or threads."),
        ] = None,
        workers: Annotated[
            int | None,
            typer.Option(metavar="N", min=1, help="The most stages at once; by default one a device."),
        ] = None,
    ) -> None:
        """Run a recipe: teach, distil, quantize, export, measure, register."""
        asked = {"only": only, "start": start, "until": until, "refresh": refresh}
        part = {name: tuple(stages) for name, stages in asked.items() if stages}
        if dry_run:
            show_part(common.load_any(file), part, as_json=as_json)
            return
        where = {"executor": executor, "workers": workers}
        finish(lambda: common.load_any(file), file, server=not no_server, as_json=as_json, part=part, where=where)


def finish(
    load: Callable[[], Recipe | Study],
    file: Path,
    *,
    server: bool,
    as_json: bool,
    part: Mapping[str, tuple[str, ...]] | None = None,
    where: Mapping[str, Any] | None = None,
) -> RunResult:
    """Run a recipe, and print its closing lines or its JSON object.

    Args:
        load: gives the recipe.
        file: its file, which names a run that did not start.
        server: run it with Prefect.
        as_json: print JSON.
        part: fields of `kdq_core.plan.part.Part`, to run some stages only.
        where: fields of the site that the command line gives.

    Raises:
        KdqError: the request is wrong, or a stage failed.
    """
    began, stdout = time.monotonic(), sys.stdout
    observer = Progressing(bars=sys.stderr.isatty())

    def last_words(stopped: BaseException | None = None) -> None:
        """Also on an interrupt, a script gets its JSON object."""
        text = _last_words(stopped, observer.begun)
        if as_json:
            typer.echo(_stopped(file, text, stopped, time.monotonic() - began).model_dump_json(), file=stdout)
        elif not isinstance(stopped, Exception):
            common.say(text, err=True)

    try:
        with leaving(last_words):
            with contextlib.redirect_stdout(sys.stderr):  # stdout is KDQ's: plug-ins print too
                recipe, site = load(), common.site(**(where or {}))
            from kdq_core.plan.part import Part
            from kdq_flows.running import run_recipe

            some = Part(**part) if part else None
            with observer.live(), contextlib.redirect_stdout(sys.stderr):
                result, error = run_recipe(recipe, site, server=server, observer=observer, part=some)
    except BaseException as stopped:
        last_words(stopped)
        raise
    if as_json:
        typer.echo(result.model_dump_json())
    elif result.branches:
        show_branches(result)
        if result.artifact:
            _closing(result)
    elif error is None:
        _closing(result)
    if error is not None:
        if error.exit_code == 2:
            error.exit_code = 1  # a stage started, and 2 would mean that nothing ran
        raise error
    return result


def _last_words(error: BaseException | None, begun: list[str]) -> str:
    """Why a run did not start, or where it was interrupted."""
    from kdq_core.errors import KdqError

    if not isinstance(error, Exception):
        return interrupted_in(begun)
    return str(error) if isinstance(error, KdqError) else f"{type(error).__name__}: {error}".rstrip(": ")


def _stopped(file: Path, text: str, error: BaseException | None, seconds: float) -> RunResult:
    """The facts of a run that did not start or was interrupted."""
    from kdq_flows.facts.result import RunResult

    status: Literal["failed", "interrupted"] = "failed" if isinstance(error, Exception) else "interrupted"
    run = file.stem if status == "failed" else _own_run() or file.stem
    return RunResult(run=run, status=status, seconds=round(seconds, 3), stages=(), models={}, error=text)


def _own_run() -> str | None:
    """The name of the newest run of this process; `None` if none began."""
    from kdq_flows.facts.state import states
    from kdq_flows.owner import owner_tag

    own = [one for one in states(common.site()) if one.owner == owner_tag()]
    return max(own, key=lambda one: one.began).run if own else None


def _closing(result: RunResult) -> None:
    """Print the table, the gains, the notes, the file, the version and the addresses of the pages."""
    from kdq_flows.facts.coverage import float_lines
    from kdq_flows.facts.result import line_of

    title = f"{result.run}: {result.status} in {result.seconds:.1f} s"
    if result.table:
        common.show([dict(row) for row in result.table], title=title, as_json=False)
    else:
        typer.echo(f"{title}; no stage of the recipe measures a model, so there is no table")
    for gain in result.gains:
        common.say(line_of(gain))
    for note in result.notes:
        common.say(note)
    if result.status == "no-news":
        typer.echo("no news: every stage was cached, nothing ran and nothing was registered")
    for slot, path in result.weights.items() if result.artifact is None else ():
        typer.echo(f"{slot:9} {path}")
    if result.artifact:
        typer.echo(f"file      {result.artifact.path}")
        typer.echo(f"          {result.artifact.bytes:,} bytes, sha256 {result.artifact.sha256}")
        typer.echo(f"          takes {', '.join(result.artifact.inputs)}")
    for line in float_lines(result.coverage):
        common.say(f"in float  {line}")
    _gates(result)
    if result.version:
        typer.echo(f"version   {result.version.name} {result.version.version}")
    for name, address in result.links.items():
        typer.echo(f"{name:9} {address}")
    if not result.links:
        typer.echo("pages     'kdq up' starts them, or says where they are")
    if result.report:
        typer.echo(f"report    {result.report}")
    if result.verdict:
        common.say(result.verdict)


def _gates(result: RunResult) -> None:
    """Print whether all gates are met, or else each gate that is not."""
    unmet = [verdict for verdict in result.gates if not verdict.met]
    if result.gates and not unmet:
        typer.echo(f"gates     all {len(result.gates)} met")
    for verdict in unmet:
        value = "not measured" if verdict.value is None else f"{verdict.value:.6g}"
        against = f"; {verdict.note}" if None in (verdict.bound, verdict.value) and verdict.note else ""
        common.say(f"gates     not met: {verdict.rule} (it is {value}{against})")
