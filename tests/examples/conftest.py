"""A table of tiny files, the folders where the examples look for them, and a publisher on the loopback interface."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdq_examples import files
from kdq_examples.table import Entry

Listed = Callable[..., Entry]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `KDQ_DATA_DIR`; pooch's cache is the folder `cache` beside it."""
    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.setenv("KDQ_DATA_DIR", str(mine))
    monkeypatch.setattr(files, "_cache", lambda: tmp_path / "cache")
    return mine


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Listed:
    """Puts a file with this content into the table, which has nothing else."""

    def put(name: str, content: bytes, *, inflated: int = 0, address: str = "") -> Entry:
        made = Entry(
            name=name,
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            inflated=inflated,
            licence="CC0",
            source="https://publisher.example",
            address=address,
        )
        monkeypatch.setitem(files.TABLE, name, made)
        return made

    for name in tuple(files.TABLE):
        monkeypatch.delitem(files.TABLE, name)
    return put


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which its files are served."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "published"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def put(folder: Path, name: str, content: bytes) -> Path:
    """Writes a file, as gzip if its name says so."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path
