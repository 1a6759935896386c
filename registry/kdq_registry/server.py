"""The command of the site's own MLflow server."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError
from kdq_registry.environment import folder, mlflow_environment, redacted

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site

HEALTH_PATH = "/health"
"""Answers 200 once the server is up."""


def server_command(site: Site, port: int) -> tuple[list[str], dict[str, str]]:
    """Return argument list and environment of an MLflow server (UI and API) on the loopback interface.

    The server has one worker and no job execution, so that it takes 0.5 GB instead of 1.5 GB. The database must have
    its schema: call `client(site)` before. The backend's address is in the environment, because `ps` would show a
    password among the arguments. The server has a child process; to stop it, end its process group.

    Args:
        site: the backend is `site.mlflow_uri`.
        port: a free TCP port.

    Raises:
        RecipeError: the site uses a server elsewhere.
    """
    if site.mlflow_uri.startswith(("http://", "https://")):
        raise RecipeError(f"the site uses the tracking server at {redacted(site.mlflow_uri)!r}; there is none to start")
    artifacts = (folder(site) / "artifacts").as_uri()
    argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = mlflow_environment(site) | dict(os.environ)
    environment |= {
        "MLFLOW_BACKEND_STORE_URI": site.mlflow_uri,
        "MLFLOW_REGISTRY_STORE_URI": site.mlflow_uri,
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }
    return argv, environment
