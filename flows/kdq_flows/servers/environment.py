"""The environment variables of every Prefect process of a site.

Prefect reads its settings when it is first imported, so call `apply_environment` before that import. Prefect then
writes below the site's home only, and uses no profile or folder in the user's home.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import Any, cast

from kdq_core.errors import RecipeError
from kdq_core.recipe.site import ENVIRONMENT
from kdq_core.recipe.spec import Site

_DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
_ALSO = "PREFECT_API_DATABASE_CONNECTION_URL"
"""Prefect's older name of the same."""
_SCHEME = re.compile(r"(\w+)(?:\+(\w+))?://", re.ASCII)


def prefect_environment(site: Site, api_url: str | None) -> dict[str, str]:
    """Variables for a Prefect server, and for a process that talks to one.

    Args:
        site: its home takes all that Prefect writes. KDQ keeps a PostgreSQL server that the user set in
            PREFECT_SERVER_DATABASE_CONNECTION_URL.
        api_url: address of the API, such as `http://127.0.0.1:4200/api`; `None` leaves the variable out.

    Raises:
        RecipeError: the user set another database, or a driver that Prefect does not use.
    """
    home = site.home / "prefect"
    variables = {
        "PREFECT_HOME": str(home),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_PROFILE": "ephemeral",  # the packaged default profile; the next lines disable its ephemeral server
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        _DATABASE: users_database() or f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        # By default Prefect keeps leases in memory; a slot that is held while the server dies is then lost.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Each library sends usage data by itself; ONNX Runtime also writes to the user's home folder.
        "ORT_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",  # the home's server asks for it
    }
    return variables | ({"PREFECT_API_URL": api_url} if api_url else {})


def site_environment(site: Site) -> dict[str, str]:
    """Variables that describe a site to another process, wherever that starts; without the address of Prefect."""
    devices = ",".join(site.devices)
    fields = {name: getattr(site, name) for name in ENVIRONMENT if name != "prefect_api"}
    fields |= {"devices": devices, "device": "" if devices else site.device}  # an empty variable is as good as none
    return {ENVIRONMENT[name]: str(value) for name, value in fields.items() if value is not None}


def users_database() -> str | None:
    """The PostgreSQL address that the user set, in the form that Prefect takes; `None` if there is none.

    A SQLite address counts as none: KDQ's own processes hand that of their home on, and a home has its own file.

    Raises:
        RecipeError: it is the address of another database, or names a driver that Prefect does not use.
    """
    for variable in (_DATABASE, _ALSO):
        given = os.environ.get(variable, "").strip()
        found = _SCHEME.match(given)
        kind, driver = (found[1].lower(), found[2]) if found else ("", None)
        if not given or kind == "sqlite":
            continue
        if found is None or kind not in ("postgres", "postgresql"):
            raise RecipeError(
                f"{variable} is the address of {f'a {kind} database' if kind else 'no database'}; allowed: PostgreSQL, "
                "as postgresql://USER:PASSWORD@HOST/DATABASE. Unset it, and the home's server uses SQLite"
            )
        if driver not in (None, "asyncpg"):
            raise RecipeError(
                f"{variable} names the driver {driver!r}, and Prefect speaks to PostgreSQL through asyncpg; write "
                "postgresql://... or postgresql+asyncpg://..."
            )
        rest = re.sub(r"([?&])sslmode=", r"\1ssl=", given[found.end() :])  # libpq's word for it, and asyncpg's
        return f"postgresql+asyncpg://{rest}"
    return None


def apply_environment(site: Site, api_url: str | None) -> None:
    """Set `prefect_environment` in this process; if Prefect is already imported, make it read its settings again."""
    with suppress(OSError):  # Prefect itself reports a folder that it cannot write
        (site.home / "prefect").mkdir(parents=True, exist_ok=True)
    os.environ.update(prefect_environment(site, api_url))
    if api_url is None:
        os.environ.pop("PREFECT_API_URL", None)
    # If it is installed, `import prefect` imports it through jsonschema, and waits 2 s for grammars that it never uses.
    cast(dict[str, Any], sys.modules).setdefault("rfc3987_syntax", None)
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
