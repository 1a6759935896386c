"""Whether the Prefect server is of a version that the Prefect installed here can talk to."""

from __future__ import annotations

import importlib.metadata

from packaging.version import InvalidVersion, Version

from kdq_core.errors import RecipeError
from kdq_flows.servers import processes


def check_version(api: str, remedy: str) -> None:
    """Refuse a Prefect server of another major version, or of an older minor one.

    A client of Prefect works with a newer server of its major version (https://docs.prefect.io, "Server and client
    compatibility"). KDQ leaves a server that does not tell everybody its version, such as one with users, to Prefect.

    Args:
        api: address of the server's API.
        remedy: what to do about another version, for the message.

    Raises:
        RecipeError: the server is of such a version.
    """
    told = processes.body(f"{api}/admin/version", seconds=5)
    try:
        there = Version((told or b"").decode(errors="replace").strip().strip('"'))
    except InvalidVersion:
        return
    here = Version(importlib.metadata.version("prefect"))
    if there.major != here.major or there.minor < here.minor:
        raise RecipeError(
            f"the Prefect server at {api!r} is version {there}, and Prefect {here} is installed here, which needs a "
            f"server from {here.major}.{here.minor} on, below {here.major + 1}; {remedy}"
        )
