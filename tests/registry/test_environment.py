import errno
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import StageError, StoreError, TransientError
from kdq_core.recipe.spec import Recipe, Site
from kdq_registry.environment import client, local_database, mlflow_environment, mlflow_errors, read_only, redacted
from kdq_registry.listing import list_models
from kdq_registry.tracking import Tracker
from kdq_registry.uploading import Upload


def test_the_environment_turns_telemetry_and_long_retries_off(tmp_path: Path) -> None:
    assert mlflow_environment(Site(home=tmp_path)) == {
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "ORT_DISABLE_TELEMETRY": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",
        "MLFLOW_ENV_ROOT": str(tmp_path / "mlflow" / "envs"),
    }


def test_a_client_leaves_a_variable_of_the_user_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    client(site)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"


def test_only_a_sqlite_file_is_a_local_database() -> None:
    assert local_database("sqlite:////srv/a b/mlflow.db?timeout=5") == Path("/srv/a b/mlflow.db")
    assert local_database("sqlite:///here.db") == Path.cwd() / "here.db"
    assert local_database("postgresql://host/mlflow") is None
    assert local_database("http://host:5000") is None


def test_a_password_is_not_shown() -> None:
    assert redacted("postgresql://kdq:secret@host:5432/mlflow") == "postgresql://kdq:***@host:5432/mlflow"
    assert redacted("http://host:5000") == "http://host:5000"


def test_a_dead_tracking_server_is_one_paragraph_in_seconds(tmp_path: Path) -> None:
    site = Site(home=tmp_path, tracking_uri="http://127.0.0.1:9")
    began = time.monotonic()
    tracker = Tracker.begin(site, Recipe(name="digits", workload="digits"), owner="me", plan_tags={})
    with pytest.raises(TransientError) as caught:
        Upload(site, tracker.spool).send(pytest.fail)
    assert time.monotonic() - began < 20
    message = str(caught.value)
    assert message.startswith("the tracking server at 'http://127.0.0.1:9' does not answer (API request to ")
    assert message.endswith("); start it, or name another one in KDQ_TRACKING_URI")
    assert "\n" not in message
    assert len(message) < 600


def test_a_damaged_database_is_one_paragraph(site: Site) -> None:
    database = site.home / "mlflow" / "mlflow.db"
    database.write_bytes(b"no database at all, but long enough to have a header " * 40)
    with pytest.raises(StageError) as caught:
        list_models(site)
    assert str(caught.value) == (
        f"the tracking database {str(database)!r} cannot be read (file is not a database); restore it from a backup, "
        "or move it away to begin a new one"
    )


FULL = (
    "the disk is full; free some space or set KDQ_HOME to a larger disk, then run again. "
    "Nothing was half-written: finished stages are kept"
)


def test_a_full_database_is_a_full_disk_not_a_damaged_file(site: Site) -> None:
    """SQLite's own limit on the pages of a file gives the error of a full disk."""
    import sqlalchemy

    mlflow = client(site)

    def cap(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("pragma max_page_count = 1")

    sqlalchemy.event.listen(mlflow._tracking_client.store.engine, "checkout", cap)
    with pytest.raises(StoreError) as caught, mlflow_errors(site):
        list(map(mlflow.create_experiment, ("x" * 200 + str(number) for number in range(500))))
    assert str(caught.value) == f"cannot write {str(site.home / 'mlflow' / 'mlflow.db')!r}: {FULL}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_below_mlflow_is_told_with_the_file(site: Site, number: int) -> None:
    with pytest.raises(StoreError) as caught, mlflow_errors(site):
        raise OSError(number, os.strerror(number), "/srv/model.onnx")
    assert str(caught.value) == f"cannot write '/srv/model.onnx': {FULL}"
    with pytest.raises(StoreError) as caught, mlflow_errors(site):
        raise RuntimeError("wrapped") from OSError(number, os.strerror(number))
    assert str(caught.value) == f"cannot write {str(site.home / 'mlflow' / 'mlflow.db')!r}: {FULL}"


def test_reading_a_database_on_a_full_or_read_only_disk_advises_no_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(text: str) -> str:
        def connect(*_: object, **__: object) -> sqlite3.Connection:
            raise sqlite3.OperationalError(text)

        monkeypatch.setattr(sqlite3, "connect", connect)
        with pytest.raises(StoreError) as caught:
            read_only(tmp_path / "mlflow.db")
        return str(caught.value)

    subject = f"cannot write {str(tmp_path / 'mlflow.db')!r}: "
    assert refuse("database or disk is full") == subject + FULL
    assert refuse("attempt to write a readonly database") == (
        subject + "it is not writable; make it writable or set KDQ_HOME to a folder that is. "
        "Nothing was half-written: finished stages are kept"
    )


def test_a_database_of_another_mlflow_names_the_upgrade(site: Site) -> None:
    with closing(sqlite3.connect(site.home / "mlflow" / "mlflow.db")) as connection:
        connection.execute("update alembic_version set version_num = '0a8213491aaa'")
        connection.commit()
    tracker = Tracker.begin(site, Recipe(name="digits", workload="digits"), owner="me", plan_tags={})
    with pytest.raises(StageError) as caught:
        Upload(site, tracker.spool).send(pytest.fail)
    assert str(caught.value) == (
        f"the tracking database {site.mlflow_uri!r} was made by another version of MLflow; back it up, then run "
        f"`mlflow db upgrade {site.mlflow_uri}`"
    )


def test_a_missing_driver_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(StageError) as caught:
        client(Site(home=tmp_path, tracking_uri="postgresql://kdq:secret@127.0.0.1:9/mlflow"))
    assert str(caught.value) == (
        "the tracking address 'postgresql://kdq:***@127.0.0.1:9/mlflow' needs the Python package 'psycopg2', which is "
        "not installed; run `pip install 'kdq[postgres]'`"
    )


def test_a_folder_as_tracking_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        client(Site(home=tmp_path, tracking_uri="mlruns"))
    assert str(caught.value) == (
        "the tracking address 'mlruns' is a folder, which MLflow no longer supports; name a database"
    )


def test_a_killed_migration_is_begun_anew(tmp_path: Path) -> None:
    site = Site(home=tmp_path)
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db.new.1").write_bytes(b"half a schema")
    (tmp_path / "mlflow" / "mlflow.db.new.1-journal").write_bytes(b"half a journal")
    client(site)
    assert [path.name for path in sorted((tmp_path / "mlflow").iterdir())] == [".migrate.lock", "mlflow.db"]


def test_a_migration_that_found_the_disk_full_succeeds_later_in_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(engine: Any) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("create table assessments (half text)")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._initialize_tables", full)
        with pytest.raises(StoreError) as caught:
            client(Site(home=tmp_path))
    assert str(caught.value) == f"cannot write {str(tmp_path / 'mlflow' / 'mlflow.db')!r}: {FULL}"
    assert [path.name for path in (tmp_path / "mlflow").iterdir()] == [".migrate.lock"]
    assert client(Site(home=tmp_path)).search_experiments() != []


def test_a_database_whose_writer_was_killed_is_read_as_before_its_last_transaction(tmp_path: Path) -> None:
    """A read-only connection cannot roll back the journal that the dead process left."""
    database = tmp_path / "mlflow.db"
    script = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('create table runs (text)')\n"
        "connection.execute('insert into runs values (1)')\n"
        "connection.execute('pragma cache_size = 1')\n"
        "connection.execute('begin')\n"
        "connection.executemany('insert into runs values (?)', [('x' * 1000,)] * 1000)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(database)], check=False, timeout=60)
    assert (tmp_path / "mlflow.db-journal").stat().st_size > 0
    with closing(read_only(database)) as connection:
        assert connection.execute("select count(*) from runs").fetchall() == [(1,)]
        with pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database"):
            connection.execute("insert into runs values (2)")
