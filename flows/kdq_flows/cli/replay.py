"""`kdq lock` and `kdq replay`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.common import JsonFlag, RecipeFile

if TYPE_CHECKING:
    from kdq_core.plan.lock import Difference


def register_commands(app: typer.Typer) -> None:
    """Add `lock` and `replay`."""
    app.command("lock", rich_help_panel="Inspect")(lock)
    app.command("replay", rich_help_panel="Run")(replay)


def lock(
    file: RecipeFile,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; default: beside the recipe, .lock.json.")
    ] = None,
) -> None:
    """Write all that decides the result of a recipe into a file: code, packages, data, machine, and files it gave."""
    from kdq_core.plan.lock import SUFFIX
    from kdq_core.store.store import explained
    from kdq_flows.run.pipeline import Pipeline

    with contextlib.redirect_stdout(sys.stderr):
        pipeline = Pipeline(common.load_recipe(file, files=True), common.site(), tracked=False)
        pipeline.find()
        made = pipeline.lock
    pipeline.finish()
    path = output or file.with_suffix(SUFFIX)
    with explained(path, "write the lock"):
        path.write_text(made.model_dump_json(indent=1, by_alias=True) + "\n", encoding="utf-8")
    done = sum(bool(stage.files) for stage in made.stages)
    common.say(f"{path}: {len(made.stages)} stages, {len(made.packages)} packages; the store has the files of {done}")
    if not made.ran:
        common.say("note: the recipe has not run, so `kdq replay` has nothing to compare with", err=True)


def replay(
    which: Annotated[
        str, typer.Argument(metavar="RUN|VERSION|LOCK", help="A run, NAME/NUMBER, NAME@ALIAS, or a lock file.")
    ],
    anyway: Annotated[bool, typer.Option("--anyway", help="Compute also if something has changed.")] = False,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the new store in this empty folder.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compute a run again in an empty store and compare the bytes, or say what has changed since."""
    from kdq_flows.cli.run import Progressing
    from kdq_flows.replay import find_lock, replay

    site = common.site()
    observer = Progressing(bars=sys.stderr.isatty())
    with contextlib.redirect_stdout(sys.stderr):
        found = find_lock(site, which)
        with observer.live():
            result = replay(found, site, anyway=anyway, home=keep, observer=observer)
    if as_json:
        typer.echo(json.dumps(result.model_dump(mode="json"), indent=2))
    else:
        _show(result.differences, "Changed since the lock")
        _show(result.bytes, "Other bytes")
        if not result.ran:
            common.say(f"{which} was not replayed: its results would not be comparable; --anyway computes them")
        elif result.reproduced:
            common.say(f"{which} is reproduced: all {result.files} files have the bytes of the lock")
        else:
            first = result.bytes[0]
            common.say(f"{which} is not reproduced: {len(result.bytes)} of {result.files} files have other bytes, "
                       f"first {first.what!r} of stage {first.stages[0]!r}")  # fmt: skip
    if not result.reproduced:
        raise typer.Exit(1)


def _show(found: tuple[Difference, ...], title: str) -> None:
    if found:
        rows: list[dict[str, object]] = [
            {"kind": one.kind, "what": one.what, "locked": one.locked, "now": one.now, "stages": ", ".join(one.stages)}
            for one in found
        ]
        common.show(rows, title=title, as_json=False)
