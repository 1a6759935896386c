"""Bring a version's files to a folder, and check a folder or a registered version against its seal."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.errors import RecipeError, StageError
from kdq_core.frozen import Frozen
from kdq_registry.aliases import ALIASES, state_of
from kdq_registry.blessing import UnsignedError, answering, checked
from kdq_registry.chain import head
from kdq_registry.environment import client, mlflow_errors
from kdq_registry.listing import repaired
from kdq_registry.logged import SHA_TAG, download
from kdq_registry.scratch import scratch
from kdq_registry.seal import Sealed
from kdq_registry.versions import nothing_yet, unknown_model, version_called, version_numbered

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site


class Checked(Frozen):
    """What was checked: a folder or a version, its seal, and who signed it."""

    what: str
    name: str
    files: int
    sha256: str
    seal: str
    signer: str
    notes: tuple[str, ...] = ()


def pull(site: Site, model: str, to: Path, *, signers: Sequence[str] = ()) -> Checked:
    """Bring all files of a version into a new folder, after checking each against the seal.

    Args:
        site: where MLflow is.
        model: `NAME@ALIAS` or `NAME/VERSION`.
        to: the folder; it must not exist, or be empty.
        signers: public keys, one of which must have signed the version.

    Raises:
        RecipeError: there is no such model, version or alias, or the folder has files.
        StageError: a file is not as sealed; the folder is not made.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RecipeError(f"{str(to)!r} is there already and is not an empty folder; name another, or remove it")
    with mlflow_errors(site):
        mlflow, version, notes = find(site, model)
        with scratch(site) as path:
            sealed = _sealed(site, mlflow, version, path, signers)
            to.parent.mkdir(parents=True, exist_ok=True)
            beside = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}")
            shutil.copytree(path, beside)
            try:
                beside.replace(to)
            except OSError:
                shutil.rmtree(beside)
                raise
    return _told(f"version {version.version} of model {version.name!r}", sealed, notes)


def verify(site: Site, what: str, *, signers: Sequence[str] = ()) -> Checked:
    """Check a pulled folder, or a registered version, against its seal, and let the model answer its golden batch.

    Args:
        site: where MLflow is; a folder is checked without it.
        what: a folder, `NAME@ALIAS` or `NAME/VERSION`.
        signers: public keys, one of which must have signed the version.

    Raises:
        RecipeError: there is no such folder, model, version or alias.
        StageError: a file is not as sealed, nobody trusted signed it, or the model answers otherwise.
    """
    path = Path(what)
    if path.is_dir():
        try:
            sealed = checked(path, {}, signers=signers)
            _answer(path, sealed)
        except UnsignedError as error:
            raise StageError(f"the files in {what!r} are refused: {error}; then pull it again") from None
        except StageError as error:
            raise StageError(f"the files in {what!r} are not as registered: {error}; pull them again") from None
        return _told(f"the files in {what!r}", sealed, ())
    with mlflow_errors(site):
        mlflow, version, notes = find(site, what)
        with scratch(site) as path:
            sealed = _sealed(site, mlflow, version, path, signers, answers=True)
    return _told(f"version {version.version} of model {version.name!r}", sealed, notes)


def find(site: Site, model: str) -> tuple[MlflowClient, Any, tuple[str, ...]]:
    """The version that `NAME@ALIAS` or `NAME/VERSION` means; aliases are repaired first, and told.

    Raises:
        RecipeError: there is no such model, version or alias.
    """
    name, mark, which = model.rpartition("@") if "@" in model else model.rpartition("/")
    if not mark or not name or not which or (mark == "/" and not which.isdecimal()):
        raise RecipeError(
            f"{model!r} names neither a folder nor a version; write a folder, NAME@ALIAS or NAME/NUMBER, such as "
            "'digits@champion' or 'digits/3'"
        )
    if nothing_yet(site):
        raise unknown_model(name, [])
    mlflow = client(site)
    if mark == "/":
        return mlflow, version_numbered(mlflow, name, int(which)), ()
    version_called(mlflow, name, which) if which not in ALIASES else None
    notes = tuple(repaired(site, mlflow, name))
    number = state_of(mlflow, name, head(mlflow, name)).get(which)
    found = version_called(mlflow, name, which) if number is None else version_numbered(mlflow, name, number)
    return mlflow, found, notes


def sha256_of_version(site: Site, asked: str) -> str:
    """Return the sha256 of the file that KDQ registered as a version.

    Args:
        site: says where MLflow is.
        asked: `NAME/NUMBER` or `NAME@ALIAS`.

    Raises:
        RecipeError: there is no such version, or KDQ did not register it.
        TransientError: the tracking server cannot be reached.
    """
    with mlflow_errors(site):
        sha256 = find(site, asked)[1].tags.get(SHA_TAG)
    if sha256 is None:
        raise RecipeError(f"KDQ did not register version {asked!r}: it has no tag {SHA_TAG!r}; name a version of KDQ's")
    return str(sha256)


def _sealed(
    site: Site, mlflow: MlflowClient, version: Any, path: Path, signers: Sequence[str], *, answers: bool = False
) -> Sealed:
    try:
        sealed = checked(download(site, mlflow, version, path), version.tags, signers=signers)
        if answers:
            _answer(path, sealed)
    except StageError as error:
        raise StageError(f"version {version.version} of model {version.name!r} {_refused(error)}") from None
    return sealed


def _refused(error: StageError) -> str:
    if isinstance(error, UnsignedError):
        return f"is refused: {error}; then try again"
    return f"is not as registered: {error}; use another version, or register the model again"


def _answer(path: Path, sealed: Sealed) -> None:
    for wrong in answering(path, sealed):
        raise StageError(wrong)


def _told(what: str, sealed: Sealed, notes: tuple[str, ...]) -> Checked:
    return Checked(
        what=what, name=sealed.seal.name, files=len(sealed.seal.files), sha256=sealed.seal.model, seal=sealed.digest,
        signer=sealed.signer, notes=notes,
    )  # fmt: skip
