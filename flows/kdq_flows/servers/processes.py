"""Background processes that outlive the command which started them, each with a record and a log in the home.

`servers/<name>.json` identifies the process by pid, start time and boot id, because the system reuses pids. A file lock
keeps two commands from starting the same process twice.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from kdq_core.errors import StageError, StoreError
from kdq_core.frozen import Frozen
from kdq_core.locks import held
from kdq_core.recipe.spec import Site
from kdq_core.store.store import explained
from kdq_flows.owner import boot_id, start_time

LOOPBACK = "127.0.0.1"
STOP_SECONDS = 8.0
"""From SIGTERM to SIGKILL."""


class ProcessRecord(Frozen):
    """A managed process, as recorded in `servers/`."""

    name: str
    pid: int
    start_time: str
    boot_id: str
    port: int | None = None
    url: str | None = None
    log: str


@dataclass(frozen=True)
class Managed:
    """How KDQ starts a managed process, and how it checks the process's health."""

    name: str
    command: Callable[[int], Sequence[str]]  # takes the port, or 0 if it has none
    environment: Callable[[int], dict[str, str]] = field(default=lambda _port: {})
    health: str | None = None  # path of the health check; `None`: no port, and healthy while alive
    deadline: float = 90.0  # seconds within which it must be healthy


def ensure(site: Site, managed: Managed, *, wait: bool = True) -> tuple[ProcessRecord, bool]:
    """The running process of that name; KDQ starts it if there is none or it does not answer.

    Args:
        site: its home holds record and log.
        managed: the process.
        wait: wait until it is healthy.

    Returns:
        The record, and whether this call started it.

    Raises:
        StageError: the process ended, or was not healthy within its deadline.
        StoreError: the home cannot be written.
    """
    with locked(site, managed.name):
        record = read_record(site, managed.name)
        if record is not None and is_running(record) and (not wait or _await_health(record, managed)):
            return record, False
        _end(site, managed.name)
        record = _start(site, managed, record.port if record else None)
    if wait and not _await_health(record, managed):
        died = not is_running(record)
        stop(site, managed.name)
        what = "ended at once" if died else f"did not answer within {managed.deadline:g} s"
        raise StageError(
            f"the {managed.name} process {what}; its last words: {_tail(record)!r}; its log is {record.log!r}"
        )
    return record, True


def stop(site: Site, name: str) -> bool:
    """End the process of that name with all its descendants; whether there was one."""
    if not _record_path(site, name).exists():
        return False
    with locked(site, name):
        return _end(site, name)


def read_record(site: Site, name: str) -> ProcessRecord | None:
    """The record in `servers/`, whether or not the process still runs; `None` if it is missing or unreadable."""
    try:
        return ProcessRecord.model_validate_json(_record_path(site, name).read_bytes())
    except (OSError, ValidationError):
        return None


def is_running(record: ProcessRecord) -> bool:
    """Whether the recorded process is alive, and not another one with the same pid."""
    return record.boot_id == boot_id() and start_time(record.pid) == record.start_time


def answers(url: str, seconds: float = 2.0) -> bool:
    """Whether a GET of `url` gives a status 2xx."""
    return body(url, seconds) is not None


def body(url: str, seconds: float = 2.0) -> bytes | None:
    """What a GET of `url` gives, `None` without a status 2xx. KDQ asks loopback addresses without a proxy."""
    local = f"//{LOOPBACK}" in url or "//localhost" in url
    handlers = [urllib.request.ProxyHandler({})] if local else []
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=seconds) as response:
            return bytes(response.read(1 << 16)) if 200 <= response.status < 300 else None
    except (OSError, ValueError, urllib.error.URLError, http.client.HTTPException):
        return None


PORT_SECONDS = 3.0
"""How long KDQ waits for the last port of a server to become free: who knows that port reaches the new server too."""


def free_port(preferred: int | None = None) -> int:
    """A free port of the loopback interface: the preferred one if it becomes free within `PORT_SECONDS`."""
    deadline = time.monotonic() + PORT_SECONDS
    while preferred is not None:
        if _is_free(preferred):
            return preferred
        if time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOOPBACK, port))
        return True
    return False


def _record_path(site: Site, name: str) -> Path:
    return site.home / "servers" / f"{name}.json"


@contextmanager
def locked(site: Site, name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold `servers/<name>.lock`.

    Raises:
        LockedError: another process holds it, and `wait` is false.
        StoreError: the home cannot be written.
    """
    path = site.home / "servers" / f"{name}.lock"
    with explained(path, "write the lock file"):
        lock = held(path, seconds=None if wait else 0)
    with lock:
        yield


def _start(site: Site, managed: Managed, last_port: int | None) -> ProcessRecord:
    port = free_port(last_port) if managed.health else 0
    log = site.home / "logs" / f"{managed.name}.log"
    with explained(log, "write the log"):
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    with output:
        child = subprocess.Popen(
            list(managed.command(port)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=site.home,
            env=os.environ | managed.environment(port),
            start_new_session=True,
        )
    _children.append(child.pid)
    child.returncode = 0  # the child outlives this process: Popen must neither wait for it nor warn about it
    record = ProcessRecord(
        name=managed.name,
        pid=child.pid,
        start_time=start_time(child.pid) or "dead",
        boot_id=boot_id(),
        port=port or None,
        url=f"http://{LOOPBACK}:{port}" if port else None,
        log=str(log),
    )
    _keep(record, _record_path(site, managed.name))
    return record


def _keep(record: ProcessRecord, path: Path) -> None:
    """Write the record; if that fails, end the process, because KDQ could not find it again."""
    fresh = path.with_suffix(".new")
    try:
        with explained(path, "write the record"):
            fresh.write_text(record.model_dump_json(), encoding="utf-8")
            fresh.replace(path)
    except StoreError:
        _end_tree(record)
        _reap()
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


_children: list[int] = []
"""Processes that this one started and has not yet reaped."""


def _reap() -> None:
    for pid in tuple(_children):
        try:
            done, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            done = pid
        if done:
            _children.remove(pid)


def _await_health(record: ProcessRecord, managed: Managed) -> bool:
    deadline = time.monotonic() + managed.deadline
    while is_running(record):
        if managed.health is None or answers(f"{record.url}{managed.health}"):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return False


def _end(site: Site, name: str) -> bool:
    """End the recorded process, and remove the record; whether it ran. The caller must hold the lock."""
    record = read_record(site, name)
    running = record is not None and is_running(record)
    if record is not None and running:
        _end_tree(record)
    _reap()
    with explained(_record_path(site, name), "remove the record"):
        _record_path(site, name).unlink(missing_ok=True)
    return running


def _end_tree(record: ProcessRecord) -> None:
    """Send SIGTERM to the process group; after some seconds SIGKILL to it and to descendants outside of it."""
    import psutil

    descendants = []
    with suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(record.pid).children(recursive=True)
    deadline = time.monotonic() + STOP_SECONDS
    with suppress(ProcessLookupError):
        os.killpg(record.pid, signal.SIGTERM)
    while is_running(record) and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(record.pid, signal.SIGKILL)
    for process in descendants:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # psutil checks that the pid was not reused
    psutil.wait_procs(descendants, timeout=2)
    while is_running(record):
        time.sleep(0.02)


def _tail(record: ProcessRecord, lines: int = 5) -> str:
    text = Path(record.log).read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join(line.strip() for line in text[-lines:] if line.strip())
