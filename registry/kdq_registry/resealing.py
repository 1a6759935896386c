"""Registering bytes again that have a version: it gets the new report, gates and seal, and damaged files anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.store.hashing import sha256_file
from kdq_registry.logged import LOGGED_TAG, download, repository
from kdq_registry.packing import Package, pack, seal
from kdq_registry.page import BILL, CARD, LOCK
from kdq_registry.scratch import scratch
from kdq_registry.seal import GOLDEN, MANIFEST, MODEL, REPORT, SAMPLES, SIGNATURE, Seal

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site

FRESH = (REPORT, GOLDEN, SAMPLES, CARD, LOCK, BILL)
"""The files that say something of this registration; the others are kept, if they are as sealed."""


def reseal(site: Site, mlflow: MlflowClient, version: Any, package: Package) -> str:
    """Seal a version anew; files that are as they should be are not touched, the manifest is written last.

    Returns:
        The digest of the manifest.
    """
    model = mlflow.get_logged_model(version.tags[LOGGED_TAG])
    with scratch(site) as path:
        there, made, changed = path / "there", path / "made", path / "changed"
        there.mkdir()
        changed.mkdir()
        download(site, mlflow, version, there)
        pack(package, model, made)
        for name in _whole(there, made):
            shutil.copyfile(there / name, made / name)
        digest = seal(site, package, made)
        names = {file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file()}
        differing = [name for name in sorted(names) if not _same(there / name, made / name)]
        for name in [name for name in differing if name not in (MANIFEST, SIGNATURE)]:
            (changed / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / name, changed / name)
        if any(changed.iterdir()):
            mlflow.log_model_artifacts(model.model_id, str(changed))
        files = repository(site, model.artifact_location)
        for file in sorted(there.rglob("*")):
            if file.is_file() and (name := file.relative_to(there).as_posix()) not in names:
                files.delete_artifacts(name)
        for name in [name for name in (SIGNATURE, MANIFEST) if name in differing]:
            files.log_artifact(str(made / name))
    return digest


def _whole(there: Path, made: Path) -> list[str]:
    """The files of MLflow that are as the old seal says; the model itself is whole if it is the file of now."""
    try:
        old = Seal.model_validate_json((there / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return []
    return [
        file.path
        for file in old.files
        if file.path not in (*FRESH, MODEL) and (made / file.path).is_file() and (there / file.path).is_file()
        and sha256_file(there / file.path) == file.sha256
    ]  # fmt: skip


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and sha256_file(one) == sha256_file(other)
