"""The environment every Prefect process of a site runs in.

Prefect reads its settings when it is first imported, so `apply_environment` comes before that import. Everything
Prefect writes then lies below the site's home; profiles and folders in the user's home are neither read nor written.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from kdq_core.recipe.spec import Site

_DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


def prefect_environment(site: Site, api_url: str | None) -> dict[str, str]:
    """Variables for a process that talks to, or is, a Prefect server.

    Args:
        site: where everything is written. A PostgreSQL server in PREFECT_SERVER_DATABASE_CONNECTION_URL is kept.
        api_url: address of the API, such as `http://127.0.0.1:4200/api`; none leaves the variable out.
    """
    home = site.home / "prefect"
    chosen = os.environ.get(_DATABASE, "")
    variables = {
        "PREFECT_HOME": str(home),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_PROFILE": "ephemeral",  # the name of the packaged default; the next line takes its meaning away
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        _DATABASE: chosen if chosen.startswith("postgresql") else f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        # With the default, leases kept in memory, a slot held while the server dies never comes back.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Separate senders of usage data; ONNX Runtime's also writes to the user's home folder.
        "ORT_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_CLI_PROMPT": "false",
    }
    return variables | ({"PREFECT_API_URL": api_url} if api_url else {})


def apply_environment(site: Site, api_url: str | None) -> None:
    """Put `prefect_environment` into this process; where Prefect is already imported, make it read again."""
    with suppress(OSError):  # Prefect says so itself
        (site.home / "prefect").mkdir(parents=True, exist_ok=True)
    os.environ.update(prefect_environment(site, api_url))
    if api_url is None:
        os.environ.pop("PREFECT_API_URL", None)
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
