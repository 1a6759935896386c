"""The home's Prefect server answers its own pages and programs of this machine alone."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

import pytest

from kdq_core.recipe.spec import Site
from kdq_flows.servers.environment import prefect_environment
from kdq_flows.servers.guard import Guard, origins
from kdq_flows.servers.servers import _prefect, running_prefect

PORT = 4200


def answer(kind: str, **headers: str) -> list[MutableMapping[str, Any]]:
    """What a guarded app sends for one request; the app itself sends `passed`."""
    sent: list[MutableMapping[str, Any]] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "passed"})

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request"}

    scope = {"type": kind, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(Guard(app, origins(PORT))(scope, receive, send))
    return sent


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:4200"},
        {"host": "localhost:9000"},
        {"host": "localhost"},
        {"host": "127.0.0.1:4200", "origin": "http://localhost:4200"},
    ],
)
def test_programs_of_this_machine_and_own_pages_pass(kind: str, headers: dict[str, str]) -> None:
    assert answer(kind, **headers) == [{"type": "passed"}]


def test_the_life_of_the_server_is_passed_on() -> None:
    assert answer("lifespan") == [{"type": "passed"}]


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"host": "evil.example:4200"}, "this server answers to 127.0.0.1 and localhost only, not to 'evil.example'"),
        ({}, "this server answers to 127.0.0.1 and localhost only, not to ''"),
        (
            {"host": "127.0.0.1:4200", "origin": "https://evil.example"},
            "this server takes no request from pages of 'https://evil.example'",
        ),
        ({"host": "127.0.0.1:4200", "origin": "null"}, "this server takes no request from pages of 'null'"),
        (
            {"host": "127.0.0.1:4200", "origin": "http://localhost:8888"},
            "this server takes no request from pages of 'http://localhost:8888'",
        ),
    ],
)
def test_foreign_names_and_pages_are_refused(headers: dict[str, str], why: str) -> None:
    start, body = answer("http", **headers)
    assert (start["status"], body["body"].decode()) == (403, why)
    assert answer("websocket", **headers) == [{"type": "websocket.close", "code": 1008, "reason": why}]


def test_the_server_is_told_its_own_origins_and_to_ask_for_tokens(site: Site) -> None:
    told = _prefect(site).environment(PORT)
    assert told["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200,http://localhost:4200"
    assert told["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert prefect_environment(site, None)["PREFECT_CLIENT_CSRF_SUPPORT_ENABLED"] == "true"


@pytest.mark.rare
def test_a_web_page_cannot_post_to_a_real_server_and_kdq_can(prefect_site: Site) -> None:
    from prefect.client.orchestration import get_client

    server = urlsplit(str(running_prefect(prefect_site)))

    def post(**headers: str) -> tuple[int, str | None, str]:
        connection = http.client.HTTPConnection(str(server.hostname), server.port, timeout=10)
        body = json.dumps({"name": "planted"})
        connection.request("POST", "/api/flows/", body, {"Content-Type": "application/json", **headers})
        reply = connection.getresponse()
        told = reply.status, reply.headers["access-control-allow-origin"], reply.read().decode()
        connection.close()
        return told

    foreign = "this server takes no request from pages of 'https://evil.example'"
    assert post(Origin="https://evil.example") == (403, None, foreign)
    assert post(Host=f"evil.example:{server.port}")[0] == 403
    status, _, text = post()
    assert (status, json.loads(text)) == (403, {"detail": "Missing CSRF token."})
    with get_client(sync_client=True) as client:
        assert client.read_flows() is not None
        flow = client.create_flow_from_name("kdq-guard")
        client.delete_flow(flow)
        assert "planted" not in [one.name for one in client.read_flows()]
