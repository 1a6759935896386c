"""The seal of a version: `manifest.json` names every file with its sha256, and all that the model was made from."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from kdq_core.errors import StageError, listing
from kdq_core.frozen import Frozen
from kdq_core.recipe.spec import Gate
from kdq_core.store.hashing import canonical, sha256_file, sha256_of
from kdq_core.store.records import Digest, EvaluationReport, FileRef
from kdq_registry.page import BILL, CARD, LOCK
from kdq_registry.signing import sign, signed_by, signer_of

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MODEL, REPORT, GOLDEN, SAMPLES = "model.onnx", "report.json", "golden.safetensors", "samples.safetensors"
FILES = frozenset({
    "MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json", "serving_input_example.json",
    MODEL, REPORT, GOLDEN, SAMPLES, CARD, LOCK, BILL,
})  # fmt: skip
"""The files that KDQ registers, besides manifest and signature."""
META = "registered_model_meta"
"""MLflow writes this file into the version itself when a program on the same machine loads it; nobody reads it here."""
SEAL_TAG = "kdq.seal"
LOCKED = (
    "kdq", "torch", "onnx", "onnxruntime", "onnxscript", "openvino", "numpy", "scipy", "scikit-learn", "mlflow",
    "safetensors", "accelerate", "torchmetrics",
)  # fmt: skip
"""The packages whose versions decide results."""


class Seal(Frozen):
    """What `manifest.json` holds. It names no time, so that the same version is sealed the same way again."""

    format: Literal[1] = 1
    name: str = Field(description="the model that the version was registered for")
    files: tuple[FileRef, ...] = Field(description="every file of the version but the manifest and its signature")
    parents: dict[str, str] = Field(description="digests of everything that the model was made from, by stage")
    data: str = Field(description="fingerprint of the data; samples of two versions compare if it is the same")
    recipe: dict[str, JsonValue]
    runtime: str = Field(description="the package that runs the file, such as onnxruntime")
    lock: dict[str, str] = Field(description="versions of the packages that decide results")
    gates: tuple[Gate, ...]
    gates_sha256: Digest
    report_sha256: Digest
    tolerances: dict[str, float] = Field(description="largest difference from the golden answer, by output")

    @property
    def model(self) -> str:
        """The sha256 of the ONNX file."""
        return next(file.sha256 for file in self.files if file.path == MODEL)


class Sealed(Frozen):
    """A seal as it was read: with the digest of its file, who signed it, and the report beside it."""

    seal: Seal
    digest: str
    signer: str = ""
    report: EvaluationReport


def write_seal(site: Site, folder: Path, **fields: Any) -> str:
    """Write manifest and signature for the files of a folder.

    Args:
        site: whose key signs, if it has one.
        folder: all files of the version; `report.json` is among them.
        **fields: those of `Seal` that do not follow from the files.

    Returns:
        The digest of the manifest.
    """
    gates: Sequence[Gate] = fields["gates"]
    seal = Seal(
        files=_files(folder),
        lock=locked(),
        gates_sha256=gates_digest(gates),
        report_sha256=sha256_file(folder / REPORT),
        **fields,
    )
    data = canonical(seal.model_dump(mode="json"))
    (folder / MANIFEST).write_bytes(data)
    if signer := signer_of(site):
        signature = {"signer": signer, "signature": sign(site, data)}
        (folder / SIGNATURE).write_bytes(canonical(signature))
    return sha256_of(data)


def read_seal(folder: Path) -> Sealed:
    """Read the seal of a version's files, and check every file against it; nothing is unpickled.

    Raises:
        StageError: there is no seal, its signature is wrong, or a file is missing, foreign or changed. The
            message is a clause; the caller puts the name of the version before it.
    """
    wrong = next(_wrong(folder), None)
    if wrong is not None:
        raise StageError(wrong)
    data = (folder / MANIFEST).read_bytes()
    signature = folder / SIGNATURE
    return Sealed(
        seal=Seal.model_validate_json(data),
        digest=sha256_of(data),
        signer=json.loads(signature.read_bytes())["signer"] if signature.exists() else "",
        report=EvaluationReport.model_validate_json((folder / REPORT).read_bytes()),
    )


def gates_digest(gates: Sequence[Gate]) -> str:
    """The sha256 of a set of gates."""
    return sha256_of(canonical([gate.model_dump(mode="json", exclude_none=True) for gate in gates]))


def locked() -> dict[str, str]:
    """The versions of the packages that decide results, where they are installed."""
    found = {}
    for name in LOCKED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _files(folder: Path) -> tuple[FileRef, ...]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, SIGNATURE))
    return tuple(
        FileRef(path=path.relative_to(folder).as_posix(), sha256=sha256_file(path), bytes=path.stat().st_size)
        for path in paths
    )


def _wrong(folder: Path) -> Iterator[str]:
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()}
    there.discard(META)
    if MANIFEST not in there:
        yield f"its file {MANIFEST!r} is missing, so nothing says which bytes KDQ registered"
        return
    data = (folder / MANIFEST).read_bytes()
    try:
        seal = Seal.model_validate_json(data)
    except ValidationError as error:
        yield f"its file {MANIFEST!r} cannot be read ({error.errors()[0]['msg']})"
        return
    if SIGNATURE in there:
        yield from _of_signature((folder / SIGNATURE).read_bytes(), data)
    sealed = {file.path: file for file in seal.files}
    missing = sorted(sealed.keys() - there)
    foreign = sorted((there - {MANIFEST, SIGNATURE} - sealed.keys()) | (sealed.keys() - FILES))
    if missing:
        yield f"its file {missing[0]!r} is missing"
    if foreign:
        yield f"it has files that KDQ did not register: {listing(foreign)}"
    yield from _of_files(folder, sealed)
    if not {MODEL, REPORT, GOLDEN, "MLmodel"} <= sealed.keys() or seal.gates_sha256 != gates_digest(seal.gates):
        yield f"its file {MANIFEST!r} was not written by KDQ"


def _of_files(folder: Path, sealed: Mapping[str, FileRef]) -> Iterator[str]:
    for path, file in sealed.items():
        found = folder / path
        if found.is_symlink() or not found.resolve().is_relative_to(folder.resolve()):
            yield f"its file {path!r} is a link"
        elif (sha256 := sha256_file(found)) != file.sha256:
            yield f"{path!r} has the sha256 {sha256[:12]}, but the seal says {file.sha256[:12]}"


def _of_signature(text: bytes, data: bytes) -> Iterator[str]:
    try:
        given = json.loads(text)
        signer, signature = str(given["signer"]), str(given["signature"])
    except (ValueError, KeyError, TypeError):
        yield f"its file {SIGNATURE!r} cannot be read"
        return
    if not signed_by(signer, signature, data):
        yield f"its seal is not what {signer[:12]} signed"
