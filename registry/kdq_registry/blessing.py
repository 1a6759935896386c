"""Looks at the files of a version before an alias moves to it: they must be as sealed, and must answer as sealed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdq_core.errors import KdqError, StageError, listing
from kdq_registry.golden import SCRIPTS, differing
from kdq_registry.logged import SHA_TAG, download
from kdq_registry.scratch import scratch
from kdq_registry.seal import GOLDEN, MODEL, SAMPLES, SEAL_TAG, Sealed, read_seal

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site

LOADER = "mlflow.onnx"
OTHERWISE = "promote another version, or register the model again"


class UnsignedError(StageError):
    """Nobody trusted signed a version; the message says how to sign it."""


@dataclass(frozen=True)
class Blessed:
    """A version whose files are as sealed; `samples` has its outcomes `[N]` on the test split, by metric."""

    sealed: Sealed
    samples: Mapping[str, np.ndarray]


def bless(site: Site, mlflow: MlflowClient, version: Any, *, signers: Sequence[str] = ()) -> Blessed:
    """Fetch all files of a version afresh, check them, and let the model answer; nothing in them is unpickled.

    Args:
        site: where MLflow is.
        mlflow: a client of the site.
        version: MLflow's version.
        signers: public keys, one of which must have signed the seal; empty asks for no signature.

    Raises:
        StageError: a file is missing, foreign or changed, the flavour is another, nobody trusted signed it, or the
            model does not answer its golden batch as sealed.
    """
    try:
        return read(site, mlflow, version, signers=signers, answers=True)
    except KdqError as error:
        todo = "then promote it again" if isinstance(error, UnsignedError) else OTHERWISE
        raise StageError(
            f"version {version.version} of model {version.name!r} cannot be promoted: {error}; {todo}"
        ) from None


def read(
    site: Site, mlflow: MlflowClient, version: Any, *, signers: Sequence[str] = (), answers: bool = False
) -> Blessed:
    """Fetch and check a version as `bless` does; only with `answers` the model is run.

    Raises:
        StageError: something is wrong; the message is a clause.
    """
    with scratch(site) as path:
        sealed = checked(download(site, mlflow, version, path), version.tags, signers=signers)
        wrong = next(answering(path, sealed), None) if answers else None
        if wrong is not None:
            raise StageError(wrong)
        return Blessed(sealed, samples_in(path))


def samples_in(folder: Path) -> dict[str, np.ndarray]:
    """The outcomes by sample that a version keeps; none if its evaluators gave none."""
    from safetensors.numpy import load

    path = folder / SAMPLES
    return dict(load(path.read_bytes())) if path.exists() else {}


def checked(folder: Path, tags: dict[str, str], *, signers: Sequence[str] = ()) -> Sealed:
    """Read the seal in a folder, and check files, flavour, tags and signer.

    Raises:
        StageError: something is wrong; the message is a clause.
    """
    sealed = read_seal(folder)
    for tag, digest in ((SEAL_TAG, sealed.digest), (SHA_TAG, sealed.seal.model)):
        if tags.get(tag, digest) != digest:
            raise StageError(f"its tag {tag!r} says {tags[tag][:12]!r}, but its files say {digest[:12]!r}")
    wrong = next(_of_description(folder / "MLmodel"), None)
    if wrong is None and signers and sealed.signer not in signers:
        who = f"{sealed.signer[:12]} signed it" if sealed.signer else "nobody signed it"
        raise UnsignedError(
            f"{who}, and the policy trusts {listing(one[:12] for one in signers)}; set KDQ_SIGNING_KEY to the file of "
            "a trusted key and run `kdq run RECIPE --refresh register`, which signs the version"
        )
    if wrong is None and sealed.seal.runtime not in SCRIPTS:
        wrong = f"it is for the runtime {sealed.seal.runtime!r}, which KDQ does not know"
    if wrong is not None:
        raise StageError(wrong)
    return sealed


def answering(folder: Path, sealed: Sealed) -> Iterator[str]:
    """Run the model on its golden batch in a clean process; yields where it answers otherwise."""
    yield from differing(folder / GOLDEN, sealed.seal.runtime, folder / MODEL, sealed.seal.tolerances)


def _of_description(path: Path) -> Iterator[str]:
    """What is wrong with `MLmodel`; it is read as plain YAML."""
    import yaml

    try:
        flavors = yaml.safe_load(path.read_text(encoding="utf-8"))["flavors"]
        names, loader = set(flavors), flavors.get("python_function", {}).get("loader_module", LOADER)
        data = flavors.get("onnx", {}).get("data")
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        yield f"its file 'MLmodel' cannot be read ({type(error).__name__})"
        return
    if names != {"onnx", "python_function"} or loader != LOADER or data != MODEL:
        said = f"flavours {listing(sorted(names))}, loader {loader!r}, data {data!r}"
        yield f"its file 'MLmodel' describes another kind of model than KDQ registers ({said})"
