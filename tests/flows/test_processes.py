import errno
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import StageError, StoreError
from kdq_core.recipe.spec import Site
from kdq_flows.owner import start_time
from kdq_flows.servers import processes
from kdq_flows.servers.processes import LOOPBACK, Managed, ensure, free_port, is_running, read_record, stop

WEB = "import http.server, sys; http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), \
http.server.SimpleHTTPRequestHandler).serve_forever()"


def web(name: str = "web", script: str = WEB, deadline: float = 20.0) -> Managed:
    return Managed(name, lambda port: [sys.executable, "-c", script, str(port)], health="/", deadline=deadline)


def test_a_process_is_started_once_adopted_and_ended(site: Site) -> None:
    record, started = ensure(site, web())
    assert started
    assert record.url == f"http://{LOOPBACK}:{record.port}"
    assert Path(record.log) == site.home / "logs" / "web.log"
    again, started_again = ensure(site, web())
    assert (again, started_again) == (record, False)
    assert stop(site, "web")
    assert not is_running(record)
    assert read_record(site, "web") is None
    assert not stop(site, "web")


def test_two_callers_at_once_start_one(site: Site) -> None:
    results = []
    threads = [threading.Thread(target=lambda: results.append(ensure(site, web()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop(site, "web")
    assert len({record.pid for record, _ in results}) == 1
    assert [started for _, started in results].count(True) == 1


def test_a_killed_process_is_replaced_on_the_same_port(site: Site) -> None:
    first, _ = ensure(site, web())
    os.kill(first.pid, 9)
    os.waitpid(first.pid, 0)
    second, started = ensure(site, web())
    stop(site, "web")
    assert started
    assert second.pid != first.pid
    assert second.port == first.port


def test_a_record_of_another_boot_or_of_a_reused_number_is_not_believed(site: Site) -> None:
    record, _ = ensure(site, web())
    assert not is_running(record.model_copy(update={"boot_id": "another"}))
    assert not is_running(record.model_copy(update={"start_time": "1"}))
    stop(site, "web")


def test_a_damaged_record_is_as_good_as_none(site: Site) -> None:
    (site.home / "servers").mkdir(parents=True)
    (site.home / "servers" / "web.json").write_text('{"name": "we')
    assert read_record(site, "web") is None
    record, started = ensure(site, web())
    stop(site, "web")
    assert started
    assert not is_running(record)


def test_stopping_ends_children_in_sessions_of_their_own(site: Site) -> None:
    script = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True).pid, flush=True); " + WEB
    )
    record, _ = ensure(site, web(script=script))
    child = int(Path(record.log).read_text().split()[0])
    assert start_time(child) is not None
    stop(site, "web")
    assert start_time(child) is None


def test_a_process_that_ends_at_once_is_told_with_its_last_words(site: Site) -> None:
    with pytest.raises(StageError) as caught:
        ensure(site, web(script="import sys; sys.exit('no such database')"))
    assert str(caught.value) == (
        "the web process ended at once; its last words: 'no such database'; "
        f"its log is {str(site.home / 'logs' / 'web.log')!r}"
    )
    assert read_record(site, "web") is None


def test_a_process_that_never_answers_is_ended(site: Site) -> None:
    with pytest.raises(StageError, match=r"^the web process did not answer within 0.5 s; "):
        ensure(site, web(script="import time; time.sleep(60)", deadline=0.5))
    assert read_record(site, "web") is None


def test_a_taken_port_is_not_chosen(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PORT_SECONDS", 0.2)
    record, _ = ensure(site, web())
    assert record.port is not None
    other = free_port(record.port)
    stop(site, "web")
    assert other != record.port


def test_the_last_port_is_waited_for() -> None:
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen()
        port = holder.getsockname()[1]
        threading.Timer(0.3, holder.close).start()
        assert free_port(port) == port


def test_a_home_that_cannot_be_written_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a folder")
    with pytest.raises(StoreError) as caught:
        ensure(Site(home=tmp_path / "home"), web())
    assert str(caught.value) == (
        f"cannot write the lock file {str(tmp_path / 'home/servers/web.lock')!r}: Not a directory; check the folder, "
        "then run again. Nothing was half-written: finished stages are kept"
    )


FULL = (
    "the disk is full; free some space or set KDQ_HOME to a larger disk, then run again. "
    "Nothing was half-written: finished stages are kept"
)


def test_a_log_that_finds_the_disk_full_is_explained(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "open", ".log")
    with pytest.raises(StoreError) as caught:
        ensure(site, web())
    assert str(caught.value) == f"cannot write the log {str(site.home / 'logs/web.log')!r}: {FULL}"


def test_a_process_whose_record_finds_the_disk_full_is_ended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(processes, "_children", Recorder(started))
    refuse(monkeypatch, "write_text", ".new")
    with pytest.raises(StoreError) as caught:
        ensure(site, web(script="import time; time.sleep(60)"))
    assert str(caught.value) == f"cannot write the record {str(site.home / 'servers/web.json')!r}: {FULL}"
    assert [start_time(pid) for pid in started] == [None]
    assert processes._children == []
    assert [path.name for path in (site.home / "servers").iterdir()] == ["web.lock"]


class Recorder(list[int]):
    """A list that tells another one what was appended."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        self.seen = seen

    def append(self, pid: int) -> None:
        self.seen.append(pid)
        super().append(pid)


def refuse(monkeypatch: pytest.MonkeyPatch, method: str, suffix: str) -> None:
    """Let `Path.<method>` find the disk full at files with this suffix."""
    real = getattr(Path, method)

    def full(path: Path, *args: Any, **more: Any) -> Any:
        if path.suffix == suffix:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *args, **more)

    monkeypatch.setattr(Path, method, full)
