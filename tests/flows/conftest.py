"""One real Prefect server for all flow tests of a session, and a site of its own for every other test."""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdq_core.recipe.spec import Site
from kdq_flows.servers.environment import apply_environment, prefect_environment
from kdq_flows.servers.servers import down, ensure_prefect

# Before anything imports Prefect, which makes its home when it is imported.
_first_home = Path(tempfile.mkdtemp(prefix="kdq-tests-"))
atexit.register(shutil.rmtree, _first_home, ignore_errors=True)
os.environ.update(prefect_environment(Site(home=_first_home), None))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(home=tmp_path / "home", threads=1)


@pytest.fixture(scope="session")
def server_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose Prefect server runs; the processes of pytest-xdist share it, and the last one out ends it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    site = Site(home=folder / "server" / "home", threads=1)
    site.home.mkdir(parents=True, exist_ok=True)
    with (folder / "server" / "users.lock").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield site
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        down(site)


@pytest.fixture
def prefect_site(server_site: Site) -> Iterator[Site]:
    """`server_site` with its server up, this process's environment pointing at it, and no other test using it."""
    with (server_site.home.parent / "turn.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        api, _ = ensure_prefect(server_site)
        apply_environment(server_site, api)
        yield server_site


@pytest.fixture
def tiny_flow(monkeypatch: pytest.MonkeyPatch) -> str:
    """Module path of a flow that this process and a worker's child can import."""
    folder = str(Path(__file__).parent / "modules")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)
    return "tiny_flow:tiny_flow"
