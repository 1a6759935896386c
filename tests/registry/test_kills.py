"""A process that is killed after any call to MLflow that writes leaves the old or the new state, and no litter.

A kill after a call that reads leaves what the last write left, so only writes are counted. Each attempt runs in a
forked process that ends with `os._exit`, as `kill -9` would end it: nothing is cleaned up.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdq_core.recipe.spec import Site
from kdq_core.store.records import ModelVersion
from kdq_registry import aliases
from kdq_registry.copying import copy_version
from kdq_registry.environment import client
from kdq_registry.history import history, verify_history
from kdq_registry.listing import list_models
from kdq_registry.logged import OWNER_TAG, begun
from kdq_registry.promotion import promote, rollback

KILLED = 9
WRITES = ("create_", "set_", "delete_", "log_", "finalize_")

Register = Callable[..., ModelVersion]


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Run `work` in a forked process; gives its exit code and its answer."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            code = 0
        except BaseException as error:
            os.write(writing, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), json.loads(said) if said else None


def dying_after(writes: int, work: Callable[[], Any]) -> Callable[[], Any]:
    """Do `work`, and end the process after so many calls of MLflow that write."""

    def run() -> None:
        from mlflow import MlflowClient
        from mlflow.tracking._model_registry.client import ModelRegistryClient

        left = [writes]

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*args: Any, **kwargs: Any) -> Any:
                answer = call(*args, **kwargs)
                left[0] -= 1
                if left[0] == 0:
                    os._exit(KILLED)
                return answer

            return counting

        for name in dir(MlflowClient):
            if name.startswith(WRITES) and not hasattr(ModelRegistryClient, name):
                setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
        for name in dir(ModelRegistryClient):  # MlflowClient calls it for all that concerns versions and aliases
            if name.startswith(WRITES):
                setattr(ModelRegistryClient, name, counted(getattr(ModelRegistryClient, name)))
        work()

    return run


def state(site: Site) -> dict[str, Any]:
    """What a user sees after the next command, and what should not be there."""
    notes = list_models(site)[1]
    mlflow = client(site)
    experiments = [one.experiment_id for one in mlflow.search_experiments()]
    everything = mlflow.search_model_versions("name LIKE '%digits'")
    versions = [int(one.version) for one in everything if one.name == "digits"]
    folders = list((site.home / "mlflow" / "artifacts").glob("*/models/m-*"))
    return {
        "aliases": aliases.read_aliases(mlflow, "digits"),
        "notes": notes,
        "wrong": list(verify_history(site, "digits").wrong),
        "kinds": [row["kind"] for row in history(site, "digits")[0] if row["lost_to"] is None],
        "versions": sorted(versions),
        "litter": {
            name: count
            for name, count in {
                "folders": len(folders) - len(everything),
                "logged models": len(begun(site, mlflow, experiments)),
                "own runs": len(mlflow.search_runs(experiments, f"tags.`{OWNER_TAG}` != ''")),
                "open runs": len(mlflow.search_runs(experiments, "attributes.status = 'RUNNING'")),
                "scratch": len(list((site.home / "mlflow" / "scratch").iterdir())),
            }.items()
            if count
        },
    }


@pytest.fixture
def template(site: Site, registered: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a home with two versions, the second of them champion; this process never opens its database."""
    import mlflow.onnx  # noqa: F401 - so that forked processes need not

    monkeypatch.setattr(aliases, "IN_FLIGHT_SECONDS", -1)

    def prepare() -> None:
        registered(0), registered(1)
        promote(site, "digits", 1), promote(site, "digits", 2)

    assert in_child(prepare) == (0, None)
    shutil.copytree(site.home, tmp_path / "template")
    return tmp_path / "template"


def kills(site: Site, template: Path, work: Callable[[], Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Kill `work` after each write; gives what stands afterwards, and after repeating it."""
    found = []
    for writes in range(1, 50):
        shutil.rmtree(site.home)
        shutil.copytree(template, site.home)
        code, said = in_child(dying_after(writes, work))
        if code == 0:
            return found
        assert code == KILLED, said
        after = in_child(lambda: state(site))
        repeated = in_child(work)
        assert repeated[0] == 0, repeated
        end = in_child(lambda: state(site))
        assert (after[0], end[0]) == (0, 0), (after, end)
        found.append((after[1], end[1]))
    raise AssertionError("it never ended")


@pytest.mark.slow
def test_a_killed_promotion(site: Site, template: Path) -> None:
    found = kills(site, template, lambda: promote(site, "digits", 1).promoted)
    assert len(found) >= 4  # entry, two aliases, settled
    old, new = {"champion": 2, "previous": 1}, {"champion": 1, "previous": 2}
    for after, end in found:
        assert after["aliases"] in (old, new)
        assert end["aliases"] == new
        assert (after["wrong"], end["wrong"]) == ([], [])
        assert (after["litter"], end["litter"]) == ({}, {})
        assert set(end["kinds"][3:]) <= {"repair"}
    assert any("did not finish" in note for after, _ in found for note in after["notes"])


@pytest.mark.rare
@pytest.mark.slow
def test_a_killed_rollback(site: Site, template: Path) -> None:
    found = kills(site, template, lambda: rollback(site, "digits").promoted)
    assert len(found) >= 4
    both = ({"champion": 2, "previous": 1}, {"champion": 1, "previous": 2})
    for after, end in found:  # repeating a rollback that was written rolls back again
        assert after["aliases"] in both
        assert end["aliases"] in both
        assert (after["wrong"], end["wrong"]) == ([], [])
        assert (after["litter"], end["litter"]) == ({}, {})


@pytest.mark.rare
@pytest.mark.slow
def test_a_killed_registration(site: Site, template: Path, registered: Register) -> None:
    found = kills(site, template, lambda: registered(5).version)
    assert len(found) >= 6  # run, logged model, files, version, link, ...
    for after, end in found:
        assert after["aliases"] == end["aliases"] == {"champion": 2, "previous": 1}
        assert after["versions"] in ([1, 2], [1, 2, 3])
        assert end["versions"] == [1, 2, 3]
        assert end["litter"] == {}


@pytest.mark.rare
@pytest.mark.slow
def test_a_killed_registration_of_bytes_that_have_a_version(site: Site, template: Path, registered: Register) -> None:
    for _, end in kills(site, template, lambda: registered(1, top1=0.99).version):
        assert (end["versions"], end["litter"]) == ([1, 2], {})
        assert in_child(lambda: promote(site, "digits", 2).promoted) == (0, True)


@pytest.mark.rare
@pytest.mark.slow
def test_a_killed_copy_into_another_model(site: Site, template: Path) -> None:
    found = kills(site, template, lambda: copy_version(site, "digits", 2, "prod.digits"))
    assert len(found) >= 6
    for after, end in found:
        assert after["aliases"] == end["aliases"] == {"champion": 2, "previous": 1}
        assert (end["versions"], end["litter"]) == ([1, 2], {})
