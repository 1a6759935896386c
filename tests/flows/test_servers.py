import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from packaging.version import Version

from kdq_core.errors import RecipeError, StageError
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.running import run_recipe
from kdq_flows.servers import processes
from kdq_flows.servers.environment import prefect_environment, site_environment
from kdq_flows.servers.servers import down, ensure_mlflow_ui, ensure_prefect, running_prefect, status


def test_everything_prefect_writes_lies_below_the_home(site: Site) -> None:
    variables = prefect_environment(site, "http://127.0.0.1:1/api")
    below = ("PREFECT_HOME", "PREFECT_LOCAL_STORAGE_PATH", "PREFECT_PROFILES_PATH")
    assert all(Path(variables[name]).is_relative_to(site.home) for name in below)
    assert str(site.home) in variables["PREFECT_SERVER_DATABASE_CONNECTION_URL"]


def test_a_database_server_of_the_users_is_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
    monkeypatch.setenv(name, "postgresql+asyncpg://kdq@db/prefect")
    assert prefect_environment(site, None)[name] == "postgresql+asyncpg://kdq@db/prefect"
    monkeypatch.setenv(name, "sqlite+aiosqlite:////elsewhere/prefect.db")
    assert prefect_environment(site, None)[name] == f"sqlite+aiosqlite:///{site.home / 'prefect/prefect.db'}"


@pytest.mark.parametrize("variable", ["PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL"])
@pytest.mark.parametrize(
    "given",
    ["postgres://kdq:p%40@db:5/prefect?sslmode=require", "postgresql://kdq:p%40@db:5/prefect?ssl=require",
     " PostgreSQL+asyncpg://kdq:p%40@db:5/prefect?ssl=require"],
)  # fmt: skip
def test_every_way_to_write_a_postgresql_address_reaches_prefect(
    site: Site, monkeypatch: pytest.MonkeyPatch, variable: str, given: str
) -> None:
    monkeypatch.setenv(variable, given)
    told = prefect_environment(site, None)["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    assert told == "postgresql+asyncpg://kdq:p%40@db:5/prefect?ssl=require"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            "mysql://me:secret@db/prefect",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL is the address of a mysql database; allowed: PostgreSQL, as "
            "postgresql://USER:PASSWORD@HOST/DATABASE. Unset it, and the home's server uses SQLite",
        ),
        (
            "db.example/prefect",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL is the address of no database; allowed: PostgreSQL, as "
            "postgresql://USER:PASSWORD@HOST/DATABASE. Unset it, and the home's server uses SQLite",
        ),
        (
            "postgresql+psycopg2://me:secret@db/prefect",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL names the driver 'psycopg2', and Prefect speaks to PostgreSQL "
            "through asyncpg; write postgresql://... or postgresql+asyncpg://...",
        ),
    ],
)
def test_an_address_that_prefect_does_not_take_is_refused_without_its_password(
    site: Site, monkeypatch: pytest.MonkeyPatch, given: str, why: str
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", given)
    with pytest.raises(RecipeError) as caught:
        prefect_environment(site, None)
    assert str(caught.value) == why


def test_mlflow_gets_libpqs_address_as_sqlalchemy_writes_it(tmp_path: Path) -> None:
    site = Site(home=tmp_path, tracking_uri="postgres://kdq@db/mlflow")
    assert site.mlflow_uri == "postgresql://kdq@db/mlflow"


def test_prefect_reads_our_environment_and_nothing_in_the_users_home(site: Site, tmp_path: Path) -> None:
    user_home = tmp_path / "user"
    (user_home / ".prefect").mkdir(parents=True)
    profile = 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://elsewhere/api"\n'
    (user_home / ".prefect" / "profiles.toml").write_text(profile)
    script = """
import json, sys
from pathlib import Path
from kdq_core.recipe.spec import Site
from kdq_flows.servers.environment import apply_environment
apply_environment(Site(home=Path(sys.argv[1])), None)
from prefect.settings import get_current_settings
s = get_current_settings()
print(json.dumps([str(s.home), s.api.url, s.server.ephemeral.enabled, s.server.analytics_enabled,
                  str(s.results.local_storage_path), s.server.concurrency.lease_storage]))
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")} | {"HOME": str(user_home)}
    env["PREFECT_API_URL"] = "http://inherited/api"
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "rfc3987_syntax.py").write_text("raise RuntimeError('an import that takes seconds')")
    env["PYTHONPATH"] = os.pathsep.join([str(slow), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script, str(site.home)],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    prefect = site.home / "prefect"
    assert json.loads(done.stdout) == [
        str(prefect), None, False, False, str(prefect / "storage"),
        "prefect.server.concurrency.lease_storage.filesystem",
    ]  # fmt: skip
    assert sorted(path.name for path in user_home.rglob("*")) == [".prefect", "profiles.toml"]


def test_a_configured_server_that_does_not_answer_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    api = f"http://127.0.0.1:{processes.free_port()}/api"
    with pytest.raises(RecipeError) as caught:
        ensure_prefect(Site(home=tmp_path, prefect_api=api))
    assert str(caught.value) == (
        f"the configured Prefect server {api!r} does not answer; start it, or unset PREFECT_API_URL to let KDQ start "
        "its own, or use --no-server"
    )
    assert not (tmp_path / "servers").exists()


def test_a_tracking_server_elsewhere_is_the_page_itself(tmp_path: Path) -> None:
    assert ensure_mlflow_ui(Site(home=tmp_path, tracking_uri="http://tracking:5000")) == "http://tracking:5000"


def test_nothing_runs_in_a_new_home(site: Site) -> None:
    assert running_prefect(site) is None
    assert [row["state"] for row in status(site)] == ["stopped"] * 3
    assert down(site) == []


def test_the_sites_server_is_used_by_every_later_command(prefect_site: Site) -> None:
    api, started = ensure_prefect(prefect_site)
    assert not started
    assert api.startswith("http://127.0.0.1:")
    assert running_prefect(prefect_site) == api
    assert ensure_prefect(prefect_site.model_copy(update={"prefect_api": f"{api}/"})) == (api, False)
    row = status(prefect_site)[0]
    assert (row["name"], row["state"], row["url"]) == ("prefect", "running", api.removesuffix("/api"))
    assert (prefect_site.home / "prefect" / "prefect.db").exists()


@pytest.mark.parametrize("devices", [(), ("cuda:1", "cuda:0")])
def test_another_process_finds_the_site_in_its_environment(
    site: Site, devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = site.model_copy(update={"devices": devices, "device": (*devices, "cpu")[0], "pool": "team", "workers": 3})
    monkeypatch.setenv("KDQ_DEVICES", "auto")
    monkeypatch.setenv("KDQ_DEVICE", "cuda")
    for name, value in site_environment(given).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert Site.from_environment() == given


@pytest.mark.parametrize(("told", "refused"), [("2.20.3", True), ("3.0.1", True), ("4.0.0", True), ("3.99.0", False)])
def test_a_prefect_server_of_another_version_is_refused_before_any_work(
    tmp_path: Path, told: str, refused: bool
) -> None:
    here = Version(importlib.metadata.version("prefect"))
    with answering({"/api/health": "true", "/api/admin/version": json.dumps(told)}) as address:
        site = Site(home=tmp_path, prefect_api=f"{address}/api")
        if not refused:
            assert ensure_prefect(site) == (f"{address}/api", False)
            return
        with pytest.raises(RecipeError) as caught:
            ensure_prefect(site)
    assert str(caught.value) == (
        f"the Prefect server at '{address}/api' is version {told}, and Prefect {here} is installed here, which needs a "
        f"server from {here.major}.{here.minor} on, below {here.major + 1}; install one version on both, or unset "
        "PREFECT_API_URL to let KDQ start its own"
    )


def test_a_prefect_server_that_does_not_tell_its_version_is_left_to_prefect(tmp_path: Path) -> None:
    with answering({"/api/health": "true"}) as address:
        assert ensure_prefect(Site(home=tmp_path, prefect_api=f"{address}/api")) == (f"{address}/api", False)


def test_an_mlflow_server_of_another_version_ends_a_run_before_any_work(tmp_path: Path) -> None:
    with (
        answering({"/version": "1.2.3"}) as address,
        pytest.raises(StageError, match=r"is version 1\.2\.3, and MLflow "),
    ):
        run_recipe(Recipe(name="digits", workload="digits"), Site(home=tmp_path, tracking_uri=address), server=False)
    assert list((tmp_path / "store").glob("*/*")) == []


@contextmanager
def answering(says: dict[str, str]) -> Iterator[str]:
    """A server that gives these texts at these paths, and 404 elsewhere; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200 if self.path in says else 404)
            self.end_headers()
            self.wfile.write(says.get(self.path, "").encode())

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
