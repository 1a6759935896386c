"""The `kdq` command. Command modules import heavy packages inside their functions, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from kdq_flows.cli import (
    authoring,
    bench,
    cache,
    common,
    encrypting,
    explain,
    models,
    own,
    plugins,
    promoting,
    recipes,
    replay,
    report,
    run,
    runs,
    schedules,
    servers,
    start,
    synergy,
    watch,
)
from kdq_flows.run.signals import EXIT_CODE, leaving

app = typer.Typer(
    name="kdq",
    help="Compress PyTorch models: distillation and quantization together, as a resumable pipeline.",
    epilog="Exit codes: 0 success; 1 a failed run, gates not met, or an unexpected error; 2 a wrong request, and "
    "nothing ran; 3 no branch meets the goals of 'select', or another process was faster with a promotion; 130 an "
    "interrupt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"kdq {version('kdq')}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[  # noqa: ARG001 - the callback answers
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    common.debug = debug


_MODULES = (
    start, run, own, recipes, bench, replay, runs, report, explain, synergy, models, promoting, encrypting, watch,
    servers, schedules, cache, plugins, authoring,
)  # fmt: skip
for _module in _MODULES:
    _module.register_commands(app)


def main() -> None:
    """Run the command line; print an error as one paragraph on stderr, and exit with its code.

    0 is success, 1 a failed run or an unexpected error, 2 a wrong request before anything ran, 3 a promotion lost to
    another process, 130 an interrupt by Ctrl-C or SIGTERM.
    """
    with leaving(exits=True):
        try:
            app(prog_name="kdq", color=False if os.environ.get("NO_COLOR") else None)
        except KeyboardInterrupt:
            sys.exit(EXIT_CODE)
        except Exception as error:
            if common.debug:
                import traceback

                traceback.print_exception(error)
            sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """Print one paragraph about `error`; gives the exit code."""
    from kdq_core.errors import KdqError

    if isinstance(error, KdqError):
        common.print_error(str(error))
        return error.exit_code
    log = common.write_crash_log(error)
    where = f"; the traceback is in {os.path.relpath(log)!r}" if log else ""
    common.print_error(
        f"unexpected error {type(error).__name__}: {str(error).strip() or 'no text'}; "
        f"run again with 'kdq --debug' to see where it comes from{where}"
    )
    return 1
