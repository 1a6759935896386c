"""Recipes for a model of the user's own, made from a few answers: the file of the model, the weights, the data."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdq_core.errors import RecipeError
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.facts.report import yaml_of
from kdq_flows.in_hand import keep

ARRAYS = (".npz", ".safetensors")
TABLES = (".csv", ".parquet", ".pq")
PTQ = ("place", "quantize", "export", "evaluate")
CHAIN = ("train_teacher", "cache_teacher", "distill", *PTQ)
GATES: list[dict[str, Any]] = [
    {"metric": "coverage_macs", "at_least": 1.0},
    {"metric": "parity_flips", "at_most": 0, "required": True},
    {"metric": "speedup", "at_least": 0.98, "bound": "low"},
]
TAUGHT = {"metric": "top1", "at_least": 0.95, "relative_to": "teacher"}
"""The default gates, but that work in float does not stop the run: the user's model may have operators without an int8
form, and the run says which."""


def quantizing(
    model: str,
    data: str,
    site: Site,
    *,
    weights: str | None = None,
    targets: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
    loss: str | None = None,
    bits: int = 8,
    quantizer: str | None = None,
    qat: bool = False,
    epochs: int | None = None,
    register: str | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Make the recipe of `kdq quantize`.

    Args:
        model: `file.py:function` or `module:function`.
        data: a file with arrays, a table, a folder of images, or `file.py:function`.
        site: where weights that are no safetensors file are written as one.
        weights: file with the trained weights; `None` takes those that the function gives.
        targets: the name of an installed target, the column with the labels of a table, or both.
        options: further options of the workload.
        loss: name of the hard loss, or `file.py:function`.
        bits: of the weights.
        quantizer: its name; by default one that fits.
        qat: train the quantized model, on the labels of the data.
        epochs: of that training.
        register: name of the model in the registry; `None` registers nothing.
        name: name of the recipe; by default that of the model's file.

    Raises:
        RecipeError: the data or the weights are not there or of an unknown kind.
    """
    runtime, column = parted_targets(targets)
    of_data = {**workload(data, column), "model": model}
    of_data |= {"loss": loss} if loss else {}
    use = of_data.pop("use")
    return {
        "name": name or name_for(model),
        "workload": {"use": use, "options": {**of_data, **(options or {})}},
        "student": {"source": "checkpoint", "file": safetensors_of(model, weights, site)},
        "quantize": quantize_section(quantizer or ("minmax-qat" if qat else "static"), bits, epochs),
        **ending(PTQ, runtime, register, [] if quantizer else GATES),
    }


def compressing(
    file: str,
    *,
    targets: Iterable[str] = (),
    bits: int = 8,
    quantizer: str | None = None,
    epochs: int | None = None,
    register: str | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Make the recipe of `kdq compress`: the whole chain, on the functions `teacher`, `student` and `data` of a file.

    Args:
        file: the Python file; a function `loss(outputs, targets)` in it is the hard loss.
        targets: the name of an installed target.
        bits: of the weights.
        quantizer: its name; by default the recipe's.
        epochs: of the teacher and of the student; the quantized student gets a third.
        register: name of the model in the registry; `None` registers nothing.
        name: name of the recipe; by default that of the file.

    Raises:
        RecipeError: the file is not there, or lacks one of the functions.
    """
    there = defined(file)
    missing = [one for one in ("teacher", "student", "data") if one not in there]
    if missing:
        raise RecipeError(
            f"{file!r} defines no {missing[0]!r}; it needs teacher() and student(), which return a torch.nn.Module, "
            "and data(split), which returns a data set for 'train', 'validation' and 'test'"
        )
    runtime, column = parted_targets(targets)
    if column:
        raise RecipeError(f"no target named {column!r}; installed: {', '.join(_targets())}")
    options = {"model": f"{file}:student", "teacher": f"{file}:teacher", "data": f"{file}:data"}
    options |= {"loss": f"{file}:loss"} if "loss" in there else {}
    quantize = quantize_section(quantizer, bits, max(1, epochs // 3) if epochs else None)
    fit = {"fit": {"epochs": epochs}} if epochs else {}
    return {
        "name": name or name_for(file),
        "workload": {"use": "python", "options": options},
        **({"teacher": fit, "distill": fit} if fit else {}),
        **({"quantize": quantize} if quantize else {}),
        **ending(CHAIN, runtime, register, [] if quantizer else [TAUGHT, *GATES]),
    }


def quantize_section(use: str | None, bits: int, epochs: int | None) -> dict[str, Any]:
    """The section `quantize`, without what is left to the recipe's defaults."""
    section: dict[str, Any] = {"use": use} if use else {}
    section |= {"weights": bits} if bits != 8 else {}
    return section | ({"fit": {"epochs": epochs}} if epochs else {})


def ending(
    stages: Iterable[str], target: str | None, register: str | None, gates: list[dict[str, Any]]
) -> dict[str, Any]:
    """The sections `target`, `register`, `gates` and `stages`; no gates leave them to the recipe's defaults."""
    found: dict[str, Any] = {"target": target} if target else {}
    found |= {"register": {"name": register}} if register else {}
    found |= {"gates": gates} if gates else {}
    return found | {"stages": [*stages, *(["register"] if register else [])]}


def workload(data: str, column: str | None) -> dict[str, Any]:
    """The workload and its options for some data: by the ending of a file, or because it is a folder or a function.

    Raises:
        RecipeError: KDQ knows no such data, or it is a table and no column with the labels is named.
    """
    path = Path(data)
    if ":" in data and not path.exists():
        return {"use": "python", "data": data}
    if path.is_dir():
        return {"use": "image-folder", "folder": data}
    ending = path.suffix.lower()
    if ending in ARRAYS:
        return {"use": "arrays", "file": data}
    if ending in TABLES:
        if column is None:
            raise RecipeError(f"the table {data!r} needs --target COLUMN, the column with the labels")
        return {"use": "table", "file": data, "target": column}
    raise RecipeError(
        f"{data!r} is no data that KDQ knows; give a file ({', '.join((*ARRAYS, *TABLES))}), a folder of images, or "
        "file.py:function"
    )


def parted_targets(given: Iterable[str]) -> tuple[str | None, str | None]:
    """Tell the name of an installed target from the name of a column.

    Raises:
        RecipeError: there are two of one kind.
    """
    known = _targets()
    runtimes = [one for one in given if one in known]
    columns = [one for one in given if one not in known]
    for found, what in ((runtimes, "targets"), (columns, "columns with labels")):
        if len(found) > 1:
            raise RecipeError(f"--target names two {what}, {found[0]!r} and {found[1]!r}; name one")
    return next(iter(runtimes), None), next(iter(columns), None)


def _targets() -> list[str]:
    return sorted(Catalog.load().names("target"))


def defined(file: str) -> set[str]:
    """Names that a Python file defines at its top, without importing it.

    Raises:
        RecipeError: it is not there, or is no Python.
    """
    path = Path(file)
    if not path.is_file():
        raise RecipeError(f"{file!r} is not there, seen from {str(Path.cwd())!r}; correct the path")
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError) as error:
        raise RecipeError(f"{file!r} is no Python file: {error}") from None
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def name_for(model: str) -> str:
    """A recipe's name for a model: that of its file or module."""
    stem = Path(model.rpartition(":")[0] or model).name.removesuffix(".py").rpartition(".")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "model"


def safetensors_of(model: str, weights: str | None, site: Site) -> str:
    """The path of a safetensors file with the weights; KDQ writes one where there is none.

    A file of `torch.save` is read without unpickling objects.

    Raises:
        RecipeError: the file is not there, or holds more than tensors.
    """
    if weights is not None and Path(weights).suffix == ".safetensors":
        return weights
    import torch
    from torch import nn

    from kdq_core.plugins.user_code import user_object

    if weights is None:
        made = user_object(model)
        module = made if isinstance(made, nn.Module) else made()
        if not isinstance(module, nn.Module):
            raise RecipeError(f"{model!r} gives a {type(module).__name__!r}; it must give a torch.nn.Module")
        return written(module.state_dict(), site)
    if not Path(weights).is_file():
        raise RecipeError(f"the weights {weights!r} are not there, seen from {str(Path.cwd())!r}; correct the path")
    try:
        loaded = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RecipeError(
            f"the weights {weights!r} cannot be read without running code from the file: "
            f"{str(error).splitlines()[0][:200]}; save them with safetensors.torch.save_file(model.state_dict(), ...)"
        ) from None
    for key in ("state_dict", "model", "model_state_dict"):
        loaded = loaded[key] if isinstance(loaded, dict) and isinstance(loaded.get(key), dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise RecipeError(
            f"the weights {weights!r} are no dict of tensors; save model.state_dict() with safetensors.torch.save_file"
        )
    return written(loaded, site)


def written(state: Mapping[str, Any], site: Site) -> str:
    """Write tensors to a file below the home that is named by their content; gives its path."""
    from safetensors.torch import save

    data = save({name: value.detach().cpu().contiguous().clone() for name, value in state.items()})
    name = f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
    return str(keep(data, site, name, what="the weights"))


def checked(recipe: Mapping[str, Any], *, said: str = "the recipe") -> Recipe:
    """Check a recipe from Python as one from a file.

    Raises:
        RecipeError: a value is wrong; messages call the recipe `said`.
        PluginError: a plug-in is missing or broken.
    """
    from kdq_core.reading.checks import check_recipe
    from kdq_core.reading.recipe_file import document_from_text, recipe_from_document

    catalog, lines = Catalog.load(), document_from_text(yaml_of(recipe), said)
    found = recipe_from_document(lines, catalog)
    check_recipe(found, catalog, lines=lines)
    return found
