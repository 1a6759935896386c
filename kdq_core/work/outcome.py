"""Runs a stage's code, and checks that its record has the declared class and its files are in allowed folders."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import KdqError, PluginError, StageError
from kdq_core.work.watch import watching

if TYPE_CHECKING:
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.store.family import Record
    from kdq_core.work.shown import Shown
    from kdq_core.work.work import StageWork

HOUSE = ("kdq_core", "kdq_flows", "kdq_registry")
SHOWN = 3
"""How many files a message names."""


def outcome(work: StageWork, catalog: Catalog) -> Record:
    """Run a stage and give its record.

    Raises:
        KdqError: the stage raised it.
        PluginError: the record is not of the class that the stage declares.
        StageError: the stage left files outside its draft.
    """
    allowed = (work.draft, work.scratch, Path(tempfile.gettempdir()))
    others = {*HOUSE, *(_package(entry.target) for entry in catalog.entries)}
    with watching(_package(type(work.wired.stage).__module__), others, allowed) as watch:
        given = _given(work, catalog)
    left = watch.left()
    if left:
        raise StageError(_left(work, left))
    record = work.wired.stage.record
    if not isinstance(given, record):
        raise PluginError(
            f"stage {work.title!r} gave a {type(given).__name__!r}, but says that it gives a {record.__name__!r}; "
            "return that, or correct 'record' in its class"
        )
    _check_files(work, given)
    return given


def _check_files(work: StageWork, record: Record) -> None:
    """Refuse a record that names files which the stage did not write.

    Raises:
        PluginError: with the first such file.
    """
    for name in record.files_named():
        path = work.draft / name
        if not path.is_file() or work.draft.resolve() not in path.resolve().parents:
            raise PluginError(
                f"the record of stage {work.title!r} names the file {name!r}, which is not in the stage's draft; write "
                "it to work.draft, or correct the record"
            )


def _given(work: StageWork, catalog: Catalog) -> object:
    """Run the stage; an exception from its code gets a note that names the stage and its distribution."""
    try:
        return work.wired.stage.run(work)
    except KdqError:
        raise
    except Exception as error:
        entry = catalog.find("stage", work.wired.use)
        guest = "" if entry.house else f" of {entry.distribution} {entry.version}"
        error.add_note(f"the stage {work.title!r}{guest} raised it")
        raise


def _left(work: Shown, paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return (
        f"stage {work.title!r} left files outside its draft: {', '.join(map(repr, paths[:SHOWN]))}{more}; its code "
        "must write to work.draft, and what it leaves there becomes the entry's; remove these, then run again"
    )


def _package(module: str) -> str:
    return module.partition(".")[0]
