"""Whether MLflow's database, or server, fits the MLflow that is installed here."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import StageError
from kdq_registry.environment import is_server, local_database, mlflow_errors, read_only, redacted

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site

_QUERY = "select version_num from alembic_version"


def check_schema(site: Site) -> str:
    """Compare the schema of the site's MLflow database with that of the installed MLflow; makes no database.

    Returns:
        What was found, in words.

    Raises:
        TransientError: the server or database does not answer.
        StageError: it is of another version.
    """
    here, address = importlib.metadata.version("mlflow"), redacted(site.mlflow_uri)
    if is_server(site.mlflow_uri):
        with mlflow_errors(site):
            from mlflow.utils.credentials import get_default_host_creds
            from mlflow.utils.rest_utils import http_request

            user = get_default_host_creds(site.mlflow_uri)  # a server with users tells its version to them alone
            answer = http_request(user, "/version", "GET", max_retries=0, timeout=10)
            answer.raise_for_status()
        there = answer.text[:100].strip()
        if there.partition(".")[0] != here.partition(".")[0]:
            raise StageError(
                f"the MLflow server at {address!r} is version {there}, and MLflow {here} is installed here; install "
                "the same major version on both"
            )
        return f"MLflow {there} at {address}, {here} here"
    found = _found(site)
    if found is None:
        return f"no database yet; MLflow {here} makes it"
    wanted = _wanted()
    if found != wanted:
        raise StageError(
            f"the tracking database {address!r} has the schema {found!r}, and MLflow {here} needs {wanted!r}; back it "
            f"up, then run `mlflow db upgrade {address}`"
        )
    return f"schema {found}, as MLflow {here} has it"


def _found(site: Site) -> str | None:
    """The revision of the database; `None` if it has no tables yet."""
    database = local_database(site.mlflow_uri)
    if database is not None:
        if not database.exists():
            return None
        with contextlib.closing(read_only(database)) as connection, mlflow_errors(site):
            row = connection.execute(_QUERY).fetchone()
            return None if row is None else str(row[0])
    import sqlalchemy

    with mlflow_errors(site):
        engine = sqlalchemy.create_engine(site.mlflow_uri)
        try:
            with engine.connect() as connection:
                if not sqlalchemy.inspect(connection).has_table("alembic_version"):
                    return None
                return str(connection.execute(sqlalchemy.text(_QUERY)).scalar())
        finally:
            engine.dispose()


def _wanted() -> str:
    """The revision of the installed MLflow, from its own list of migrations."""
    from alembic.script import ScriptDirectory

    spec = importlib.util.find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    return str(ScriptDirectory(str(Path(spec.origin).parent / "store" / "db_migrations")).get_current_head())
