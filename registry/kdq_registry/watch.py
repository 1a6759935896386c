"""What `kdq watch` needs of a version: its files as sealed, and its answers to the golden batch now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import StageError
from kdq_core.frozen import Frozen
from kdq_core.recipe.spec import Recipe
from kdq_core.store.records import EvaluationReport
from kdq_registry.blessing import checked
from kdq_registry.environment import mlflow_errors
from kdq_registry.golden import answers
from kdq_registry.logged import download
from kdq_registry.page import LOCK
from kdq_registry.pulling import find
from kdq_registry.seal import GOLDEN, MODEL

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site


class Champion(Frozen):
    """A version as it was sealed.

    Attributes:
        name: the registered model.
        version: its number.
        sha256: of the ONNX file.
        runtime: the package that runs it.
        recipe: how it was made.
        report: how it was measured then.
        model: its file.
        golden: its golden batch.
        tolerances: largest difference from the golden answers, by output.
        lock: the lock of its run, if it has one.
    """

    name: str
    version: int
    sha256: str
    runtime: str
    recipe: Recipe
    report: EvaluationReport
    model: Path
    golden: Path
    tolerances: dict[str, float]
    lock: bytes | None


def champion(site: Site, model: str, folder: Path) -> tuple[Champion, tuple[str, ...]]:
    """Fetch a version and check it against its seal.

    Args:
        site: where MLflow is.
        model: `NAME@ALIAS` or `NAME/VERSION`.
        folder: a folder to make, for the files.

    Returns:
        The version, and one sentence for each alias that KDQ repaired.

    Raises:
        RecipeError: there is no such model, version or alias.
        StageError: a file is not as sealed.
    """
    with mlflow_errors(site):
        mlflow, version, notes = find(site, model)
        folder.mkdir(parents=True)
        try:
            sealed = checked(download(site, mlflow, version, folder), version.tags)
        except StageError as error:
            raise StageError(
                f"version {version.version} of model {version.name!r} is not as registered: {error}; `kdq history "
                f"{version.name}` says who promoted it, and `kdq rollback` brings the version before back"
            ) from None
    seal, lock = sealed.seal, folder / LOCK
    found = Champion(
        name=version.name,
        version=int(version.version),
        sha256=seal.model,
        runtime=seal.runtime,
        recipe=Recipe.model_validate(seal.recipe),
        report=sealed.report,
        model=folder / MODEL,
        golden=folder / GOLDEN,
        tolerances=seal.tolerances,
        lock=lock.read_bytes() if lock.is_file() else None,
    )
    return found, notes


def golden_differences(version: Champion) -> dict[str, float]:
    """Run the version on its golden batch in a clean process; gives the largest difference of each output.

    An output that is missing, or has another shape, differs by infinity.

    Raises:
        StageError: the runtime cannot run the file.
    """
    import numpy as np
    from safetensors.numpy import load_file

    named = load_file(version.golden)
    inputs = {name.removeprefix("input/"): value for name, value in named.items() if name.startswith("input/")}
    given = answers(version.runtime, version.model, inputs)
    differences = {}
    for name, value in named.items():
        if name.startswith("output/"):
            output = name.removeprefix("output/")
            found = given.get(output)
            alike = found is not None and found.shape == value.shape
            most = np.abs(found.astype(np.float64) - value).max(initial=0.0) if alike and found is not None else np.inf
            differences[output] = float(most)
    return differences
