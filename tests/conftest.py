"""What several rooms' tests share."""

from __future__ import annotations

import atexit
import gc
import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from kdq_core.plugins.catalog import Catalog

os.environ["OMP_NUM_THREADS"] = "1"  # the suite runs in several processes: threads would only wait for each other
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # otherwise importing onnxruntime writes to the user's home folder
os.environ["KDQ_LEASES"] = tempfile.mkdtemp(prefix="kdq-leases-")  # no test waits for another process's
atexit.register(shutil.rmtree, os.environ["KDQ_LEASES"], ignore_errors=True)
settings.register_profile("kdq", deadline=None)  # a busy machine is no failure
settings.load_profile("kdq")

ROOT = Path(__file__).resolve().parent.parent
BUCKET = "kdq"


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_collect() -> None:
    """Keep what earlier files left out of later collections, because each stage collects once."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guest distributions pip-installed; put it on a child's PYTHONPATH."""
    target = tmp_path_factory.mktemp("guests")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    folders = sorted(map(str, (ROOT / "tests" / "guest").iterdir()))
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), *folders], check=True, timeout=120)
    return target


@pytest.fixture(scope="session")
def with_examples() -> Catalog:
    """KDQ's own plug-ins and those of examples/, which are on the path and not installed."""
    from kdq_core.plugins.catalog import Catalog

    project = tomllib.loads((ROOT / "examples" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    examples = [EntryPoint(name, value, "kdq") for name, value in project["entry-points"]["kdq"].items()]
    return Catalog.load([*distribution("kdq").entry_points.select(group="kdq"), *examples])


class S3Server:
    """Moto's S3 in a thread of this process: it serves one bucket, and what it holds outlives its stop."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the libraries that moto imports
            from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        self._app = one_at_a_time(DomainDispatcherApplication(create_backend_app))
        self._port = 0
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "much-too-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def start(self) -> None:
        """Serve, on the port of before if there was one."""
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_args: Any) -> None:
                """No line for each request."""

        self._server = make_server("127.0.0.1", self._port, self._app, threaded=True, request_handler=Quiet)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def make_bucket(self) -> None:
        """Make the bucket."""
        asked = urllib.request.Request(f"{self.environment['AWS_ENDPOINT_URL']}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(asked, timeout=10):
            pass


def one_at_a_time(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Answer requests one by one: moto looks at a condition first and writes later, where S3 does both at once."""
    lock = threading.Lock()

    def locked(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        length = environ.get("CONTENT_LENGTH")
        if length:  # a slow client holds up nobody
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(length)))
        with lock:
            return list(app(environ, start_response))

    return locked


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A server of S3 with an empty bucket."""
    server = S3Server()
    server.make_bucket()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty store on that server; the environment of this process and of its children reaches it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none; begin with the files that take longest."""
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name not in ("test_run.py", "test_demo.py"), item.path not in slow))
