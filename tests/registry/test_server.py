import sys
from pathlib import Path

import pytest

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Site
from kdq_registry.server import server_command


def test_the_server_is_small_on_loopback_and_on_the_sites_own_database(tmp_path: Path) -> None:
    argv, environment = server_command(Site(home=tmp_path), 5123)
    assert argv == [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", "127.0.0.1", "--port", "5123", "--workers", "1"),
    ]
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert environment["MLFLOW_ARTIFACTS_DESTINATION"] == f"file://{tmp_path}/mlflow/artifacts"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_password_stays_out_of_the_arguments(tmp_path: Path) -> None:
    argv, _ = server_command(Site(home=tmp_path, tracking_uri="postgresql://kdq:secret@host/mlflow"), 5123)
    assert not [part for part in argv if "secret" in part]


def test_a_server_elsewhere_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        server_command(Site(home=tmp_path, tracking_uri="https://me:secret@host:5000"), 5123)
    assert str(caught.value) == (
        "the site uses the tracking server at 'https://me:***@host:5000'; there is none to start"
    )
