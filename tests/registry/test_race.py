"""Eight processes from four homes promote at the same moment: on SQLite, over REST, on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.promotion_race import race
from kdq_core.recipe.spec import Site
from kdq_registry.server import HEALTH_PATH, server_command

PROCESSES, ROUNDS = 8, 2


def one_wins_and_all_others_are_told(folder: Path, uri: str) -> None:
    found = list(race(folder, uri, PROCESSES, ROUNDS))
    assert len(found) == ROUNDS
    before = None
    for number, one in enumerate(found, start=1):
        (won,) = one["won"]
        right = {"champion": won} | ({} if before in (None, won) else {"previous": before})
        assert {**one["aliases"], **right} == one["aliases"]
        assert (one["wrong"], one["entries"]) == ([], number)
        assert len(one["told"]) == PROCESSES - 1
        for text in one["told"]:
            assert f" promoted version {won} at the same moment (entry {number}, " in text
        before = won


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def rest(site: Site, tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server on the site's database."""
    where = port()
    argv, environment = server_command(site, where)
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{where}{HEALTH_PATH}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield f"http://127.0.0.1:{where}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of an empty PostgreSQL database; Debian's packages have the programs."""
    pytest.importorskip("psycopg2", reason="needs kdq[postgres]: pip install psycopg2-binary")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")) or [
        Path(one) for one in filter(None, [shutil.which("pg_ctl")])
    ]
    if not found:
        pytest.skip("needs PostgreSQL's own programs: apt-get install postgresql")
    programs, where = found[-1].parent, port()
    user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
    with tempfile.TemporaryDirectory() as data:
        if user is not None:
            shutil.chown(data, user)

        def run(*words: str | Path) -> None:
            out = Path(data) / "out"
            with out.open("w") as log:  # a pipe would wait for the server, which inherits it
                code = subprocess.run(words, user=user, cwd="/", stdout=log, stderr=log, timeout=120).returncode
            assert code == 0, out.read_text()

        run(programs / "initdb", "-D", f"{data}/db", "-A", "trust", "-U", "kdq", "--no-sync")
        options = f"-p {where} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data} -c max_connections=300"
        run(programs / "pg_ctl", "-D", f"{data}/db", "-w", "-l", f"{data}/log", "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://kdq@127.0.0.1:{where}/postgres"
        finally:
            run(programs / "pg_ctl", "-D", f"{data}/db", "-m", "immediate", "stop")


@pytest.mark.slow
def test_a_race_on_sqlite_has_one_winner(site: Site, tmp_path: Path) -> None:
    one_wins_and_all_others_are_told(tmp_path, site.mlflow_uri)


@pytest.mark.rare
def test_a_race_over_rest_has_one_winner(rest: str, tmp_path: Path) -> None:
    one_wins_and_all_others_are_told(tmp_path, rest)


@pytest.mark.slow
@pytest.mark.rare
def test_a_race_on_postgresql_has_one_winner(postgres: str, tmp_path: Path) -> None:
    one_wins_and_all_others_are_told(tmp_path, postgres)
