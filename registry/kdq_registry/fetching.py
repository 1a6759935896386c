"""Fetch the ONNX file of a registered version, so that KDQ can read a teacher from it.

Files lie in `KDQ_HOME/registered`, named by their sha256. KDQ does not download a whole file again.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.errors import RecipeError, StageError, listing
from kdq_core.frozen import Frozen
from kdq_core.store.hashing import canonical, sha256_file, sha256_of
from kdq_registry.aliases import ALIASES
from kdq_registry.entries import ENTRY_TAG
from kdq_registry.environment import client, local_database, mlflow_errors, read_only
from kdq_registry.listing import repaired
from kdq_registry.logged import SHA_TAG
from kdq_registry.versions import CHAIN_SUFFIX, direct, nothing_yet, unknown_model, version_called, version_numbered

if TYPE_CHECKING:
    import sqlite3

    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site


class Fetched(Frozen):
    """The file of a registered version; `path` is named by `sha256`."""

    name: str
    version: int
    sha256: str
    path: Path
    notes: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """The version in words, with what was found wrong with its aliases."""
        return "; ".join((f"version {self.version} of {self.name!r}, sha256 {self.sha256[:12]}", *self.notes))


def fetch(site: Site, model: str) -> Fetched:
    """Find the version and bring its ONNX file to this site.

    If KDQ registered the version, the file has the registered bytes, and KDQ checks them against the tag `kdq.sha256`.
    For any other version with the flavor `onnx` it is the model file, with external weights moved inside.

    Args:
        site: says where MLflow is, and where the file goes.
        model: `NAME/VERSION` or `NAME@ALIAS`.

    Raises:
        RecipeError: there is no such model, version or alias, or it is not an ONNX model.
        TransientError: the tracking server cannot be reached.
        StageError: the file was changed after it was registered, or MLflow refused.
    """
    name, mark, which = model.partition("/") if "/" in model else model.partition("@")
    if nothing_yet(site):
        raise unknown_model(name, [])
    there = _there(site, name, mark, which)
    if there is not None:
        return there
    with mlflow_errors(site):
        mlflow = client(site)
        notes = tuple(repaired(site, mlflow, name)) if mark == "@" and which in ALIASES else ()
        found = version_numbered(mlflow, name, int(which)) if mark == "/" else version_called(mlflow, name, which)
        kept, note = site.home / "registered", _note(site, found)
        kept.mkdir(parents=True, exist_ok=True)
        sha256 = found.tags.get(SHA_TAG) or _read(kept / note)
        if sha256 is None or not _whole(kept / f"{sha256}.onnx", sha256):
            sha256 = _download(site, mlflow, found, kept)
            if SHA_TAG not in found.tags:
                (kept / note).write_text(sha256)
    path = kept / f"{sha256}.onnx"
    return Fetched(name=name, version=int(found.version), sha256=sha256, path=path, notes=notes)


def _there(site: Site, name: str, mark: str, which: str) -> Fetched | None:
    """Look the version up in a local SQLite file and the site's files, in milliseconds; `None` if MLflow is needed."""
    database = local_database(site.mlflow_uri)
    if database is None:
        return None
    query = (
        "select v.version, t.value from model_versions v join model_version_tags t on t.name = v.name "
        "and t.version = v.version where v.current_stage <> 'Deleted_Internal' and t.key = ? and v.name = ? "
        "and v.version = "
    )
    meant = "?" if mark == "/" else "(select version from registered_model_aliases where name = v.name and alias = ?)"
    with contextlib.closing(read_only(database)) as connection:
        row = connection.execute(query + meant, (SHA_TAG, name, which)).fetchone()
        if row and mark == "@" and which in ALIASES and not _agreed(connection, name, which, int(row[0])):
            return None
    path = site.home / "registered" / f"{row[1]}.onnx" if row else None
    if path is None or not _whole(path, row[1]):
        return None
    return Fetched(name=name, version=int(row[0]), sha256=row[1], path=path)


def _agreed(connection: sqlite3.Connection, name: str, alias: str, version: int) -> bool:
    """Say whether the newest entry of the chain has the alias at this version, or there is no chain."""
    query = (
        "select t.value from model_version_tags t join model_versions v on t.name = v.name and t.version = v.version "
        "where v.name = ? and t.key = ? and v.current_stage <> 'Deleted_Internal' order by v.version desc limit 1"
    )
    row = connection.execute(query, (name + CHAIN_SUFFIX, ENTRY_TAG)).fetchone()
    try:
        return row is None or json.loads(row[0])["aliases"].get(alias) == version
    except (ValueError, KeyError, AttributeError):
        return False  # MLflow's way tells what is wrong


def _download(site: Site, mlflow: MlflowClient, version: Any, kept: Path) -> str:
    """Put the version's file into `kept` under its sha256, and return the sha256."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    address = direct(mlflow).get_model_version_download_uri(version.name, version.version)
    files = get_artifact_repository(address, tracking_uri=site.mlflow_uri, registry_uri=site.mlflow_uri)
    tag = version.tags.get(SHA_TAG)
    with tempfile.TemporaryDirectory(dir=kept) as scratch:
        inside = _onnx_file(version, Path(files.download_artifacts("MLmodel", scratch)))
        if tag:
            file = Path(files.download_artifacts(inside, scratch))
        else:
            file = _in_one_file(Path(files.download_artifacts("", scratch)) / inside)
        sha256 = sha256_file(file)
        if tag and tag != sha256:
            raise StageError(
                f"the file of version {version.version} of model {version.name!r} has the sha256 {sha256[:12]}, but "
                f"its tag {SHA_TAG!r} says {tag[:12]}: it was changed after it was registered; use another version, "
                "or register the model again"
            )
        file.replace(kept / f"{sha256}.onnx")
    return sha256


def _onnx_file(version: Any, description: Path) -> str:
    """Path of the ONNX file within the version's folder, according to its file `MLmodel`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.models import Model

        flavors = Model.load(str(description)).flavors
    if "onnx" not in flavors:
        raise RecipeError(
            f"version {version.version} of model {version.name!r} is asked for as a teacher, and it has no flavor "
            f"'onnx'; it has: {listing(flavors)}. Export the model to ONNX and register that (mlflow.onnx), or give "
            "its weights as source: checkpoint."
        )
    return str(flavors["onnx"]["data"])


def _in_one_file(file: Path) -> Path:
    """Put all weights into the ONNX file; MLflow keeps large ones in files beside it."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    bare = onnx.load(file, load_external_data=False)
    if any(uses_external_data(tensor) for tensor in bare.graph.initializer):
        onnx.save(onnx.load(file), file)
    return file


def _note(site: Site, version: Any) -> str:
    """Name of the file that holds the sha256 of a version without the tag."""
    made = (site.mlflow_uri, version.name, int(version.version), version.creation_timestamp, version.source)
    return f"{sha256_of(canonical(made))}.version"


def _read(path: Path) -> str | None:
    return path.read_text().strip() if path.is_file() else None


def _whole(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) == sha256
