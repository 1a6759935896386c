"""Connect to MLflow: its environment, explicit addresses, one migration, and errors as one paragraph.

MLflow takes two seconds to import. Functions import it, after `mlflow_environment` has been applied.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import socket
import sqlite3
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

from kdq_core.errors import KdqError, StageError, StoreError, TransientError
from kdq_core.locks import held
from kdq_core.store.store import explained
from kdq_registry.addresses import follow, moved_from
from kdq_registry.refusals import denied, unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
_SQLITE_DISK = {"database or disk is full": errno.ENOSPC, "attempt to write a readonly database": errno.EROFS}

EXTRAS = {"psycopg2": "'kdq[postgres]'"}
"""What to install for a package that an extra of KDQ brings."""
TURN = 7472113
"""The number of the PostgreSQL lock for making MLflow's schema."""

_ready: set[str] = set()
_ready_lock = threading.Lock()


def folder(site: Site) -> Path:
    """Return the folder of everything that MLflow keeps on this site."""
    return site.home / "mlflow"


def mlflow_environment(site: Site) -> dict[str, str]:
    """Return environment variables for every process that imports MLflow; the user's own values win.

    MLflow sends no telemetry. It gives up a dead server after 2 retries (3 s) instead of 246 s, and a silent one after
    30 s per try. It prints no URLs on stdout, which belongs to `--json`. It keeps the environments of `mlflow models
    serve` below KDQ_HOME.
    """
    return {
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "ORT_DISABLE_TELEMETRY": "1",  # otherwise ONNX Runtime 1.31 writes ~/.cache/Microsoft and uploads
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # KDQ reports failures itself; MLflow would log tracebacks
        "MLFLOW_ENV_ROOT": str(folder(site) / "envs"),
    }


def client(site: Site) -> MlflowClient:
    """Make a client with explicit tracking and registry addresses, and the schema of a local SQLite file.

    Raises:
        TransientError: the server cannot be reached.
        StageError: the database is unreadable, or a Python package is missing.
        StoreError: the disk is full or not writable.
    """
    for name, value in mlflow_environment(site).items():
        os.environ.setdefault(name, value)
    with mlflow_errors(site):
        from mlflow import MlflowClient

        _make_ready(site)
        return MlflowClient(tracking_uri=site.mlflow_uri, registry_uri=site.mlflow_uri)


def local_database(uri: str) -> Path | None:
    """Return the SQLite file of `uri`, or `None` for any other address."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()


def is_server(uri: str) -> bool:
    """Say whether the address is that of an MLflow server, not of a database."""
    return uri.startswith(("http://", "https://"))


def follow_home(site: Site) -> None:
    """Let the addresses in the home's own database follow a home that was moved or copied; imports no MLflow.

    A database outside of the home keeps its addresses, because other homes may use it.
    """
    database = local_database(site.mlflow_uri)
    artifacts = folder(site) / "artifacts"
    if database is None or not database.exists() or database.parent.resolve() != folder(site).resolve():
        return
    try:
        if moved_from(database, artifacts) is not None:
            with held(folder(site) / ".migrate.lock"):
                follow(database, artifacts)
    except sqlite3.Error as error:
        raise _unreadable(database, error) from error


def read_only(database: Path) -> sqlite3.Connection:
    """Open an existing SQLite file for reading, without importing MLflow.

    The function opens the file for writing if it can, because only such a connection can roll back what a killed
    process left half-written. It then forbids queries that write.

    Raises:
        StageError: the file is unreadable or not a database.
    """
    connection = None
    try:
        connection = sqlite3.connect(f"file:{quote(str(database))}?mode=rw", uri=True, timeout=20)
        connection.execute("pragma query_only = 1")
        connection.execute("select name from sqlite_master limit 1").fetchall()
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise _unreadable(database, error) from error
    return connection


@contextlib.contextmanager
def mlflow_errors(site: Site) -> Iterator[None]:
    """Turn errors of MLflow, its database driver and the file system into KDQ's errors of one paragraph."""
    try:
        yield
    except KdqError:
        raise
    except ImportError as error:
        missing = (error.name or "mlflow").partition(".")[0]
        command = EXTRAS.get(missing, missing)
        raise StageError(
            f"the tracking address {redacted(site.mlflow_uri)!r} needs the Python package {missing!r}, which is not "
            f"installed; run `pip install {command}`"
        ) from error
    except Exception as error:
        raise _told(site, error) from error


def user() -> str:
    """Name of the user of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # a container without an entry in passwd


def actor() -> str:
    """Who acts: the user of the tracking server, or of this process, and the host."""
    return f"{os.environ.get('MLFLOW_TRACKING_USERNAME') or user()}@{socket.gethostname()}"


def redacted(uri: str) -> str:
    """Return `uri` without its password, for messages and records."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))


def _make_ready(site: Site) -> None:
    """Check the backend once per process; create a local SQLite file once per site."""
    uri = site.mlflow_uri
    with _ready_lock:
        database = local_database(uri)
        if uri in _ready and (database is None or database.exists()):
            return
        if database is not None:
            _migrate(site, database)
            follow_home(site)
        elif not is_server(uri):
            _prepare(site, uri)
        _ready.add(uri)


def _migrate(site: Site, database: Path) -> None:
    """Create the schema in a file of its own and rename it, so that a killed migration leaves nothing behind."""
    with held(folder(site) / ".migrate.lock"):
        if database.exists():
            read_only(database).close()
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        database.parent.mkdir(parents=True, exist_ok=True)
        _clear(database)
        # A fresh name: MLflow keeps the connection to a file it failed on, and would use it again.
        unfinished = database.with_name(f"{database.name}.new.{uuid.uuid4().hex[:8]}")
        try:
            store = SqlAlchemyStore(f"sqlite:///{unfinished}", (folder(site) / "artifacts").as_uri())
            store.engine.dispose()
            unfinished.rename(database)
        except BaseException:
            _clear(database)
            raise


def _clear(database: Path) -> None:
    """Remove what a migration left unfinished, with SQLite's journals."""
    for left in database.parent.glob(f"{database.name}.new*"):
        left.unlink(missing_ok=True)


def _prepare(site: Site, uri: str) -> None:
    """Connect to a database server once, and make MLflow's schema there if it has none.

    MLflow itself would retry a dead server for more than a minute. When several processes make the schema at once, all
    but one fail, so they take turns: those of a home by a file, those of all homes by a lock of PostgreSQL.
    """
    import sqlalchemy
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if "://" not in uri:
        raise StageError(f"the tracking address {uri!r} is a folder, which MLflow no longer supports; name a database")
    engine = sqlalchemy.create_engine(uri)
    try:
        with held(folder(site) / ".migrate.lock"), engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(sqlalchemy.text(f"select pg_advisory_lock({TURN})"))
            if not sqlalchemy.inspect(connection).has_table("alembic_version"):
                SqlAlchemyStore(uri, (folder(site) / "artifacts").as_uri()).engine.dispose()
    finally:
        engine.dispose()


def _told(site: Site, error: Exception) -> KdqError:
    address = redacted(site.mlflow_uri)
    detail = " ".join(str(error).replace(site.mlflow_uri, address).split())[:300]
    if is_server(site.mlflow_uri) and (told := denied(error, address)) is not None:
        return told
    if unreachable(error):
        return TransientError(
            f"the tracking server at {address!r} does not answer ({detail}); start it, or name another one in "
            "KDQ_TRACKING_URI"
        )
    database = local_database(site.mlflow_uri)
    disk = _disk(database or folder(site), error)
    if disk is not None:
        return disk
    if "is locked" in detail:
        return TransientError(f"the tracking database {address!r} is busy ({detail}); try again")
    if "out-of-date database schema" in detail:
        return StageError(
            f"the tracking database {address!r} was made by another version of MLflow; back it up, then run "
            f"`mlflow db upgrade {address}`"
        )
    if database is not None and type(error).__name__ in {"DatabaseError", "OperationalError"}:
        return _unreadable(database, error)
    return StageError(f"MLflow at {address!r} refused: {detail}")


def _unreadable(database: Path, error: Exception) -> KdqError:
    detail = " ".join(str(error).split())[:200]
    return _disk(database, error) or StageError(
        f"the tracking database {str(database)!r} cannot be read ({detail}); restore it from a backup, or move it "
        "away to begin a new one"
    )


def _disk(path: Path, error: BaseException | None) -> StoreError | None:
    """Make the error for a full or read-only disk if that is among the causes of `error`, else return `None`.

    Args:
        path: the database or folder that was written. If the cause names a file, the message names that file.
        error: the exception that was raised.
    """
    while error is not None:
        cause = error
        if isinstance(error, sqlite3.OperationalError) and str(error) in _SQLITE_DISK:
            cause = OSError(_SQLITE_DISK[str(error)], str(error))
        if isinstance(cause, OSError) and cause.errno in _DISK:
            try:
                with explained(Path(cause.filename) if isinstance(cause.filename, str) else path, "write"):
                    raise cause
            except StoreError as told:
                return told
        error = error.__cause__ or error.__context__
    return None
