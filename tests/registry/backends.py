"""Servers for tests: PostgreSQL as an ordinary user in a temporary folder, and MLflow over HTTP."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kdq_core.recipe.spec import Site
from kdq_registry.environment import client
from kdq_registry.server import server_command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_programs() -> Path:
    """The folder of PostgreSQL's programs; skips the test where there is none, or no driver."""
    pytest.importorskip("psycopg2", reason="no psycopg2: pip install 'kdq[postgres]'")
    places = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").is_file() and (place / "postgres").is_file():
            return place
    pytest.skip("no PostgreSQL server here: apt-get install postgresql")


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Address of an empty database of a cluster of its own, which goes afterwards."""
    programs, port = postgres_programs(), free_port()
    root = os.getuid() == 0
    user = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.getuid())
    who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if root else {}
    folder = Path(tempfile.mkdtemp(prefix="kdq-pg-"))  # a socket's path is short
    os.chown(folder, user.pw_uid, user.pw_gid)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": folder, **who}
    words = [programs / "initdb", "-D", folder / "data", "-U", "kdq", "--auth=trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(words, check=True, **quiet)
    words = [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
    server = subprocess.Popen([*words, "-F", "-c", "max_connections=200"], start_new_session=True, **quiet)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], **quiet).returncode:
            assert server.poll() is None, "PostgreSQL ended"
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.1)
        yield f"postgresql://kdq@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def mlflow_server(site: Site, *words: str, port: int | None = None, **variables: str) -> Iterator[str]:
    """Address of an MLflow server on the site's database, with its artifacts behind it; at the end it is killed."""
    client(site)
    port = port or free_port()
    argv, environment = server_command(site, port)
    log = site.home / "server.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*argv, *words],
            env=environment | variables,
            cwd=site.home,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def kdq(home: Path, tracking: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a `kdq` command in a process of its own."""
    kept: Mapping[str, str] = {k: v for k, v in os.environ.items() if not k.startswith(("KDQ_", "MLFLOW_", "PREFECT_"))}
    code = "import sys; from kdq_flows.cli import main; sys.argv[0] = 'kdq'; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**kept, "KDQ_HOME": str(home), "KDQ_TRACKING_URI": tracking, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
