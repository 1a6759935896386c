"""The home's own Prefect server: `python -m kdq_flows.servers.guard PORT`.

The server has no authentication, so any web page that the user visits could post to it, also under a foreign name that
leads to this machine. Prefect's settings check neither the name nor web sockets. So KDQ serves Prefect's app behind a
guard, which lets requests through that name this machine and come from no page but the server's own.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from kdq_flows.servers.processes import LOOPBACK

NAMES = (LOOPBACK, "localhost")
POLICY_VIOLATION = 1008
"""Code of a web socket that is closed because of a rule."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def origins(port: int) -> list[str]:
    """The origins of the server's own pages."""
    return [f"http://{name}:{port}" for name in NAMES]


class Guard:
    """An ASGI app that answers 403 to what names another host or comes from a foreign page, and passes on the rest."""

    def __init__(self, app: App, allowed: list[str]) -> None:
        """Guard `app`; `allowed` are the origins of its own pages."""
        self._app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or the events of the server's life."""
        why = self.refusal(scope["headers"]) if scope["type"] in ("http", "websocket") else None
        if why is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": why})
        else:
            kind = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": kind})
            await send({"type": "http.response.body", "body": why.encode()})

    def refusal(self, headers: list[tuple[bytes, bytes]]) -> str | None:
        """Why a request is refused; `None` if it is not."""
        told = {name.lower(): value.decode("latin-1") for name, value in headers}
        name = told.get(b"host", "").rpartition(":")[0] or told.get(b"host", "")
        if name not in NAMES:
            return f"this server answers to {' and '.join(NAMES)} only, not to {name!r}"
        origin = told.get(b"origin")
        if origin is not None and origin not in self._allowed:
            return f"this server takes no request from pages of {origin!r}"
        return None


def main(port: int) -> None:
    """Serve until a signal; Prefect reads its settings from the environment."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    server = get_current_settings().server
    uvicorn.run(
        Guard(create_app(final=True), origins(port)),  # as `prefect server start` does it
        host=LOOPBACK,
        port=port,
        timeout_keep_alive=server.api.keepalive_timeout,
        log_level=server.logging_level.lower(),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
