"""One real Prefect server for all flow tests of a session, and a site of its own for every other test."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdq_core.spec import Site
from kdq_flows.environment import apply_environment, prefect_environment
from kdq_flows.servers import down, ensure_prefect

# Before anything imports Prefect, which makes its home when it is imported.
_first_home = Path(tempfile.mkdtemp(prefix="kdq-tests-"))
atexit.register(shutil.rmtree, _first_home, ignore_errors=True)
os.environ.update(prefect_environment(Site(home=_first_home), None))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(home=tmp_path / "home", threads=1)


@pytest.fixture(scope="session")
def server_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose Prefect server runs; tests that use it are in the xdist group `prefect`."""
    site = Site(home=tmp_path_factory.mktemp("server") / "home", threads=1)
    api, _ = ensure_prefect(site)
    apply_environment(site, api)
    yield site
    down(site)


@pytest.fixture
def prefect_site(server_site: Site) -> Site:
    """`server_site`, with this process's environment pointing at it, whatever the test before did."""
    api, _ = ensure_prefect(server_site)
    apply_environment(server_site, api)
    return server_site


@pytest.fixture
def tiny_flow(monkeypatch: pytest.MonkeyPatch) -> str:
    """Module path of a flow that this process and a worker's child can import."""
    folder = str(Path(__file__).parent / "modules")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)
    return "tiny_flow:tiny_flow"
