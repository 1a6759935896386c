"""What differs between two versions of a model: files, origin, recipe, packages, gates and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdq_core.errors import StageError
from kdq_registry.blessing import read
from kdq_registry.comparing import OF
from kdq_registry.environment import client, mlflow_errors
from kdq_registry.seal import Sealed
from kdq_registry.tracking import flattened
from kdq_registry.versions import nothing_yet, unknown_model, version_numbered

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site


def differences(site: Site, name: str, first: int, second: int) -> list[dict[str, Any]]:
    """Compare the sealed contents of two versions.

    Returns:
        A row for each value that differs: `part`, `what`, and the value of each version, `None` where it has none.

    Raises:
        RecipeError: there is no such model or version.
        StageError: a version's files are not as sealed.
    """
    if nothing_yet(site):
        raise unknown_model(name, [])
    sides = []
    with mlflow_errors(site):
        mlflow = client(site)
        for number in (first, second):
            version = version_numbered(mlflow, name, number)
            try:
                sides.append(dict(_values(read(site, mlflow, version).sealed)))
            except StageError as error:
                raise StageError(f"version {number} of model {name!r} cannot be compared: {error}") from None
    one, other = sides
    return [
        {"part": part, "what": what, str(first): one.get((part, what)), str(second): other.get((part, what))}
        for part, what in dict.fromkeys((*one, *other))
        if one.get((part, what)) != other.get((part, what))
    ]


def _values(sealed: Sealed) -> Iterator[tuple[tuple[str, str], Any]]:
    seal = sealed.seal
    models = sealed.report.models
    for model in sorted(models, key=lambda slot: slot != OF):  # what the version ships comes first
        for metric in models[model]:
            yield ("metric", f"{model} {metric.name}"), metric.value
    yield ("data", "fingerprint"), seal.data[:12]
    for stage, digest in seal.parents.items():
        yield ("parent", stage), digest[:12]
    for part, value in (("recipe", seal.recipe), ("gates", [one.model_dump(exclude_none=True) for one in seal.gates])):
        for what, leaf in flattened(value):
            yield (part, what), leaf
    yield ("runtime", "package"), seal.runtime
    for package, version in seal.lock.items():
        yield ("package", package), version
    for file in seal.files:
        yield ("file", file.path), file.sha256[:12]
    yield ("seal", "signer"), sealed.signer[:12]
