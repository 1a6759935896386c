"""What `kdq doctor` says of versions, disk, devices, leases, MLflow's schema and the clock."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from kdq_core.errors import RecipeError, StageError, StoreError, TransientError
from kdq_core.recipe.spec import Site
from kdq_flows import running
from kdq_flows.owner import host
from kdq_flows.preflight import findings
from kdq_flows.run.leases import lease
from kdq_flows.seeing import installation
from kdq_registry.schema import check_schema
from tests.flows.leasing import CPU

FULL = (
    "the home {home!r} has 500 MB free of 1000 GB; `kdq cache gc --older 30d` shows what may go, or set KDQ_HOME to a "
    "larger disk"
)


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, str]]]:
    """A server with its address, and what it shall say: a `date` header, and a body."""
    says = {"date": "", "body": "{}"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            if says["date"]:
                self.send_header("date", says["date"])
            self.end_headers()
            self.wfile.write(says["body"].encode())

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", says
        running.shutdown()
        thread.join()


def test_versions_are_told_and_those_that_kdq_does_not_take_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    told = installation.check_versions()
    assert told.startswith(f"kdq {importlib.metadata.version('kdq')}, torch ")
    assert ", Python 3." in told
    asked = ["numpy<1", "no-such-package", "pytest; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: asked)
    with pytest.raises(RecipeError) as caught:
        installation.check_versions()
    assert str(caught.value) == (
        f"numpy is {importlib.metadata.version('numpy')}, KDQ asks for <1; no-such-package is not installed, KDQ asks "
        "for any; install them with `pip install -c constraints.txt kdq`"
    )


def test_a_full_disk_is_told_with_what_to_do(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"bytes": 2e9}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free["bytes"], total=1e12))
    assert running.check_disk(site) == "2 GB free of 1000 GB"
    free["bytes"] = 5e8
    with pytest.raises(StoreError) as caught:
        running.check_disk(site)
    assert str(caught.value) == FULL.format(home=str(site.home))
    assert findings.tried("home", lambda: findings.home(site)).says == str(caught.value)


def test_a_device_that_is_not_there_is_told(site: Site) -> None:
    assert installation.check_devices(site).startswith(f"cpu, 1 of {os.cpu_count()} cores a stage, ")
    with pytest.raises(RecipeError):
        installation.check_devices(site.model_copy(update={"device": "cuda:99"}))


def test_leases_tell_who_holds_a_device_and_a_holder_that_is_gone_is_an_error(site: Site) -> None:
    where = f"; lock files in {site.leases}"
    assert installation.check_leases(site) == f"cpu-1 is free{where}"
    with lease(site, CPU):
        assert installation.check_leases(site) == f"cpu-1 is held by process {os.getpid()} of another home{where}"
        file = site.leases / "cpu-1.lock"
        file.write_text(f"{host()}:999999:1:0")
        with pytest.raises(StageError) as caught:
            installation.check_leases(site)
    assert str(caught.value) == (
        "device 'cpu-1' is held, and the process that took it is gone or unknown; find who has its lock file open "
        f"with `fuser {file}`, and end that process if nobody needs it"
    )


def test_a_clock_that_goes_wrong_is_told(server: tuple[str, dict[str, str]]) -> None:
    address, says = server
    now = datetime.datetime.now(datetime.UTC)
    says["date"] = format_datetime(now, usegmt=True)
    assert installation.check_clock(address) == "within 1 s of the Prefect server's"
    says["date"] = format_datetime(now - datetime.timedelta(seconds=101), usegmt=True)
    with pytest.raises(StageError) as caught:
        installation.check_clock(address)
    assert re.fullmatch(  # a header has whole seconds
        f"the clock of this machine differs by 10[01] s from that of the Prefect server at {re.escape(address)}; set "
        "both by NTP, or schedules fire at other times than you read",
        str(caught.value),
    )
    says["date"] = ""
    assert installation.check_clock(address) == "the server does not tell its time"


def test_a_database_of_another_mlflow_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    here = importlib.metadata.version("mlflow")
    assert check_schema(site) == f"no database yet; MLflow {here} makes it"
    (site.home / "mlflow").mkdir(parents=True)
    with sqlite3.connect(site.home / "mlflow" / "mlflow.db") as database:
        database.execute("create table alembic_version (version_num text)")
        database.execute("insert into alembic_version values ('abc')")
    database.close()
    monkeypatch.setattr("kdq_registry.schema._wanted", lambda: "abc")
    assert check_schema(site) == f"schema abc, as MLflow {here} has it"
    monkeypatch.setattr("kdq_registry.schema._wanted", lambda: "def")
    with pytest.raises(StageError) as caught:
        check_schema(site)
    assert str(caught.value) == (
        f"the tracking database {site.mlflow_uri!r} has the schema 'abc', and MLflow {here} needs 'def'; back it up, "
        f"then run `mlflow db upgrade {site.mlflow_uri}`"
    )


def test_an_mlflow_server_of_another_major_version_is_told(site: Site, server: tuple[str, dict[str, str]]) -> None:
    address, says = server
    here = importlib.metadata.version("mlflow")
    there = site.model_copy(update={"tracking_uri": address})
    says["body"] = here
    assert check_schema(there) == f"MLflow {here} at {address}, {here} here"
    says["body"] = "1.2.3"
    with pytest.raises(StageError) as caught:
        check_schema(there)
    assert str(caught.value) == (
        f"the MLflow server at {address!r} is version 1.2.3, and MLflow {here} is installed here; install the same "
        "major version on both"
    )


def test_an_mlflow_server_that_is_away_is_told(site: Site) -> None:
    with pytest.raises(TransientError) as caught:
        check_schema(site.model_copy(update={"tracking_uri": "http://127.0.0.1:9"}))
    assert str(caught.value).startswith("the tracking server at 'http://127.0.0.1:9' does not answer (")
