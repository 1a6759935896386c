"""One matrix gives equal digests with every executor, on real clusters; an interrupt leaves nothing running."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows.test_run import KDQ, environment, facts, until
from tests.flows.test_run import kdq as run_kdq

pytestmark = [pytest.mark.slow, pytest.mark.rare, pytest.mark.timeout(600)]

TOY = """
name: toy
workload: {use: digits, options: {teacher_width: 4, student_width: 4}}
stages: [train_teacher, distill]
teacher: {fit: {epochs: 1}}
distill: {fit: {epochs: 1}}
gates: []
matrix: {over: {seed: [0, 1], distill.fit.learning_rate: [0.01, 0.001]}}
"""
Digests = dict[str, str]


def where(home: Path) -> dict[str, str]:
    return environment(home) | {"KDQ_CPU_SLOTS": "2"}


def digests(home: Path) -> Digests:
    """The digests of all entries, by key; the keys hold those of the parents."""
    found = {}
    for path in (home / "store").glob("??/*/manifest.sha256"):
        found[path.parent.name] = path.read_text().strip()
    return found


def run(folder: Path, *words: str, home: str = "home", **more: str) -> tuple[dict[str, Any], Digests]:
    """Run the matrix; gives its JSON object and the digests of its home."""
    file = folder / "toy.yaml"
    file.write_text(TOY)
    done = subprocess.run(
        [KDQ, "run", str(file), "--json", *words], env=where(folder / home) | more, cwd=folder,
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return facts(done), digests(folder / home)


def left(home: Path) -> list[str]:
    """The processes of a home that still run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("KDQ_HOME") == str(home):
                found.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
    return found


@contextmanager
def background(*words: str, home: Path, log: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own group, which ends with the body."""
    with log.open("ab") as file:
        child = subprocess.Popen(
            words, env=where(home) | more, cwd=home.parent, stdout=file, stderr=file, start_new_session=True
        )
        try:
            yield child
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Digests:
    result, found = run(tmp_path_factory.mktemp("inline"), "--no-server", "--executor", "inline")
    assert len(found) == 6  # two teachers and four students
    assert {stage["state"] for stage in result["stages"]} == {"ran"}
    return found


@pytest.mark.parametrize("executor", ["threads", "ray", "dask"])
def test_the_digests_are_those_of_an_inline_run(inline: Digests, executor: str, tmp_path: Path) -> None:
    user = tmp_path / "user"
    user.mkdir()
    _, found = run(tmp_path, "--no-server", "--executor", executor, "--workers", "2", HOME=str(user))
    assert found == inline
    assert list(user.iterdir()) == []  # neither library writes to the user's home folder
    until(lambda: not left(tmp_path / "home"), "all processes have ended", 20)


LONG = TOY.replace("teacher: {fit: {epochs: 1}}", "teacher: {fit: {epochs: 500}}")


@pytest.mark.parametrize("executor", ["inline", "threads", "ray", "dask"])
def test_ctrl_c_ends_every_node_and_the_same_command_resumes(executor: str, tmp_path: Path) -> None:
    home, file, log = tmp_path / "home", tmp_path / "long.yaml", tmp_path / "said.txt"
    file.write_text(LONG)
    words = [str(KDQ), "run", str(file), "--no-server", "--executor", executor, "--workers", "2"]
    with background(*words, home=home, log=log) as child:
        logs = home / "logs"
        until(lambda: any(" epoch 3: " in one.read_text() for one in logs.glob("*/train_teacher.log")), "epochs", 200)
        began = time.monotonic()
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        assert child.wait(30) == 130, log.read_text()
        assert time.monotonic() - began < 10
    assert "interrupted in train_teacher" in log.read_text()
    until(lambda: not left(home), f"all processes have ended: {left(home)}", 10)
    assert list((home / "scratch").glob("*/*")), "the fit has kept its state"


def test_the_second_run_takes_over_when_the_first_is_killed(tmp_path: Path) -> None:
    """Both want the same teachers; the first is killed while it trains one."""
    home, file = tmp_path / "home", tmp_path / "long.yaml"
    file.write_text(LONG.replace("500", "150"))
    words = [str(KDQ), "run", str(file), "--no-server"]
    first_log, second_log = tmp_path / "first.txt", tmp_path / "second.txt"
    with background(*words, home=home, log=first_log) as first:
        until(lambda: any(" epoch 2: " in one.read_text() for one in home.glob("logs/*/train_teacher.log")), "epochs")
        with background(*words, home=home, log=second_log) as second:
            waits = "train_teacher@"
            until(lambda: "waits: another run computes it" in second_log.read_text(), "the second waits")
            os.kill(first.pid, signal.SIGKILL)
            assert second.wait(300) == 0, second_log.read_text()
    assert waits in second_log.read_text()
    assert len(digests(home)) == 6


@contextmanager
def dask_cluster(folder: Path, home: Path, **more: str) -> Iterator[str]:
    """A scheduler and a worker as processes, as somebody else starts them; gives the address."""
    file, python = folder / "scheduler.json", [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    scheduler = [*python, "--port", "0", "--no-dashboard", "--scheduler-file", str(file), "--host", "127.0.0.1"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "2"]
    worker += ["--nworkers", "1", "--no-dashboard", "--local-directory", str(folder / "dask")]
    with background(*scheduler, home=home, log=folder / "scheduler.txt"):
        until(file.exists, "the scheduler")
        with background(*worker, home=home, log=folder / "worker.txt", **more):
            yield json.loads(file.read_text())["address"]


def test_a_worker_of_dask_in_another_process_computes_with_its_own_site(inline: Digests, tmp_path: Path) -> None:
    with dask_cluster(tmp_path, tmp_path / "home") as address:
        _, found = run(tmp_path, "--no-server", "--executor", "dask", DASK_SCHEDULER_ADDRESS=address)
        assert found == inline


def test_a_worker_with_another_store_or_machine_is_told(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(TOY)
    other = tmp_path / "other"
    with dask_cluster(tmp_path, other) as address:
        words = [KDQ, "run", str(file), "--no-server", "--executor", "dask"]
        asked = where(tmp_path / "home") | {"DASK_SCHEDULER_ADDRESS": address}
        done = subprocess.run(words, env=asked, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1
        assert f"put the result into its store {str(other / 'store')!r}" in " ".join(done.stderr.split())
        more = subprocess.run(
            words, env=asked | {"KDQ_THREADS": "2"}, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert "(threads: 1 here, 2 planned)" in " ".join(more.stderr.split())


def test_a_pool_runs_nodes_in_the_worker_of_kdq_serve(inline: Digests, tmp_path: Path) -> None:
    home = tmp_path / "home"
    log = tmp_path / "serve.txt"
    try:
        with background(str(KDQ), "serve", "--nodes", "--workers", "2", home=home, log=log):
            until(lambda: " started" in log.read_text(), "the worker", 200)
            result, found = run(tmp_path, "--executor", "pool", "--workers", "2")
        assert found == inline
        assert "prefect" in result["links"]
        assert "run 'toy-" in log.read_text()
    finally:
        run_kdq(home, "down")
    until(lambda: not left(home), "all processes have ended", 20)
