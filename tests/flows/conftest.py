"""One real Prefect server for all flow tests of a session, and a site of its own for every other test."""

import atexit
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdq_core.locks import held
from kdq_core.plan.plan import make_plan
from kdq_core.plan.view import RunView
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.family import Record
from kdq_core.store.records import Manifest
from kdq_core.store.store import Entry
from kdq_flows.servers.environment import apply_environment, prefect_environment
from kdq_flows.servers.servers import down, ensure_prefect

# Before anything imports Prefect, which makes its home when it is imported.
_first_home = Path(tempfile.mkdtemp(prefix="kdq-tests-"))
atexit.register(shutil.rmtree, _first_home, ignore_errors=True)
os.environ.update(prefect_environment(Site(home=_first_home), None))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(home=tmp_path / "home", threads=1, leases=tmp_path / "leases")


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
    with held(server_site.home.parent / "turn.lock"):
        api, _ = ensure_prefect(server_site)
        apply_environment(server_site, api)
        yield server_site


@pytest.fixture
def tiny_flow(monkeypatch: pytest.MonkeyPatch) -> str:
    """Module path of a flow that this process and a worker's child can import."""
    folder = str(Path(__file__).parent / "modules")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder, prepend=os.pathsep)
    return "tiny_flow:tiny_flow"


@pytest.fixture
def view_of(tmp_path: Path) -> Callable[..., RunView]:
    """Makes the view of a run of the digits from records by name of the stage."""

    def view(**records: Record) -> RunView:
        recipe = Recipe.model_validate({"name": "x", "workload": "digits"})
        plan = make_plan(recipe, Site(home=tmp_path / "home", threads=1), Catalog.load())
        manifests = {
            name: Manifest(stage=name, key="0" * 64, parts={}, record=record, files=())  # type: ignore[arg-type]
            for name, record in records.items()
        }
        return RunView(plan, {name: Entry(tmp_path, manifest) for name, manifest in manifests.items()})

    return view


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process, in a terminal of 80 columns; gives exit code, stdout and stderr."""
    from kdq_flows.cli import main

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDQ_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kdq", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return call
