"""Addresses of artifacts follow a home that was moved or copied.

MLflow keeps the whole address of each file. So a moved home would lose its models, and a copied one would use the files
of the original. KDQ rewrites the addresses below the old home when it first connects from the new one.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow keeps addresses of files."""
FIRST = "select artifact_location from experiments where experiment_id = 0"
"""The experiment that each new database has; its address tells for which home the database was made."""
SECONDS = 60


def moved_from(database: Path, artifacts: Path) -> str | None:
    """Say which address the artifacts of a database had before its home was moved or copied; `None` if it was not.

    Two paths of the same folder, such as through a link, are no move.

    Args:
        database: MLflow's SQLite file.
        artifacts: the folder of the home's artifacts.
    """
    with contextlib.closing(sqlite3.connect(database, timeout=SECONDS)) as connection:
        made = connection.execute("select 1 from sqlite_master where name = 'experiments'").fetchone()
        row = connection.execute(FIRST).fetchone() if made else None
    there = str(row[0]).removesuffix("/0") if row else ""
    if not there.endswith("/mlflow/artifacts") or there == artifacts.as_uri():
        return None
    old = Path(unquote(urlsplit(there).path))
    with contextlib.suppress(OSError):
        if os.path.samefile(old, artifacts):
            return None
    return there


def follow(database: Path, artifacts: Path) -> bool:
    """Rewrite the addresses of a database whose home was moved or copied, all or none; gives whether it did.

    Args:
        database: MLflow's SQLite file; the caller holds the lock of its home.
        artifacts: the folder of the home's artifacts.
    """
    old = moved_from(database, artifacts)
    if old is None:
        return False
    new = artifacts.as_uri()
    with contextlib.closing(sqlite3.connect(database, timeout=SECONDS)) as connection, connection:
        for table, column in COLUMNS:
            connection.execute(
                f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",  # noqa: S608
                (new, len(old) + 1, len(old) + 1, f"{old}/"),
            )
    return True
