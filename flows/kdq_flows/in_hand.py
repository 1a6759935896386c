"""Writes models and data of the running program to files, so that stages in other processes can read them."""

from __future__ import annotations

import copy
import hashlib
import inspect
import io
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Site
from kdq_core.store.store import explained

LIMIT = 1_000_000
"""Most samples of an iterable."""
SECONDS = 60.0
"""How long KDQ reads an iterable."""


def workload(
    site: Site,
    *,
    student: Any,
    teacher: Any = None,
    data: Mapping[str, Any],
    loss: Any = None,
    dynamic: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Write what is given to files, and make the recipe's section `workload`.

    Args:
        site: the files go below its home.
        student: a `torch.nn.Module`; it stays as it is.
        teacher: the same, or `None`.
        data: by split, or as `whole`: a data set, a `DataLoader`, arrays, or an iterable of batches.
        loss: name of a loss, a function of (outputs, targets), or `None`.
        dynamic: axes whose size may change from batch to batch, by input.

    Raises:
        RecipeError: an object is of another type, or cannot be pickled.
    """
    models = {"model": _module(student, "student")}
    models |= {"teacher": _module(teacher, "teacher")} if teacher is not None else {}
    sources = {name: _source(one, name) for name, one in data.items() if one is not None}
    function = loss if callable(loss) else None
    options: dict[str, Any] = {name: _written(one, site, name) for name, one in models.items()}
    options |= {"parts": [[name, _written(one, site, f"the data {name!r}")] for name, one in sources.items()]}
    if loss is not None:
        options["loss"] = loss if function is None else _written(function, site, "loss")
    options |= {"dynamic": {name: list(axes) for name, axes in dynamic.items()}} if dynamic else {}
    code = sorted({path for one in (*models.values(), *sources.values(), function) for path in _code(one)})
    return {"use": "in-hand", "options": {"folder": str(site.home / "given"), **options, "code": code}}


def _module(given: Any, what: str) -> Any:
    """A copy of a module on the CPU, in eval mode.

    Raises:
        RecipeError: it is none.
    """
    from torch import nn

    if not isinstance(given, nn.Module):
        raise RecipeError(f"{what} is a {type(given).__name__!r}; it must be a torch.nn.Module")
    return copy.deepcopy(given).cpu().eval()


def _source(given: Any, what: str) -> Any:
    """Data that another process can read: an iterable becomes a list of its batches.

    Raises:
        RecipeError: an iterable does not end, or gives nothing.
    """
    from torch.utils.data import DataLoader, IterableDataset

    stream = isinstance(given, DataLoader | IterableDataset) and isinstance(
        getattr(given, "dataset", given), IterableDataset
    )
    if isinstance(given, DataLoader) and not stream:
        return DataLoader(given.dataset, collate_fn=given.collate_fn)  # KDQ has its own order and batch size
    if not stream and (isinstance(given, Mapping | tuple | list) or hasattr(given, "__getitem__")):
        return given
    if not hasattr(given, "__iter__"):
        raise RecipeError(
            f"{what} is a {type(given).__name__!r}; it must be a data set, a DataLoader, arrays (inputs, labels), or "
            "an iterable of batches"
        )
    batches, samples, began = [], 0, time.monotonic()
    for batch in given:
        batches.append(batch)
        samples += _samples(batch)
        if samples > LIMIT or time.monotonic() - began > SECONDS:
            raise RecipeError(
                f"{what} gave {samples:,} samples in {time.monotonic() - began:.0f} s and did not end; pass a part, "
                "such as list(itertools.islice(batches, count)), or a data set"
            )
    if not batches:
        raise RecipeError(f"{what} gave no batch; pass data that can be read again, such as a list or a DataLoader")
    return batches


def _samples(batch: Any) -> int:
    while isinstance(batch, Mapping | tuple | list):
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return len(batch)


def _written(given: Any, site: Site, what: str) -> str:
    """Pickle an object to a file named by its content; gives the name.

    Raises:
        RecipeError: it cannot be pickled.
    """
    try:
        data = pickled(given)
    except Exception as error:
        raise RecipeError(
            f"{what} cannot be passed to another process: {type(error).__name__}: {error}; use a recipe, where a "
            "function makes it"
        ) from error
    name = hashlib.sha256(data).hexdigest()
    keep(data, site, f"{name}.pkl", what="a model or data")
    return name


def keep(data: bytes, site: Site, name: str, *, what: str) -> Path:
    """Write bytes to a file below the home, unless it is there already; gives its path.

    Args:
        data: the content.
        site: says where the home is.
        name: name of the file, which follows from its content.
        what: how an error calls the content.

    Raises:
        StoreError: the file cannot be written.
    """
    path = site.home / "given" / name
    with explained(path, f"write {what}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            part = path.with_suffix(".part")
            part.write_bytes(data)
            part.replace(path)
    return path


def pickled(given: Any) -> bytes:
    """Pickle an object; equal tensors give equal bytes, which torch's own pickling does not promise.

    Raises:
        Exception: of any class, if it cannot be pickled.
    """
    import cloudpickle
    import torch

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is torch.nn.Parameter:
                return torch.nn.Parameter, (obj.detach(), obj.requires_grad)
            if type(obj) is torch.Tensor and obj.layout == torch.strided and obj.dtype != torch.bfloat16:
                return torch.from_numpy, (obj.detach().cpu().numpy(),)
            return super().reducer_override(obj)

    with io.BytesIO() as file:
        Pickler(file).dump(given)
        return file.getvalue()


def _code(given: Any) -> Iterator[str]:
    """Files or modules with the code of an object's classes, without those that are installed or of a script."""
    for one in _classes(given):
        module = sys.modules.get(one.__module__)
        file = getattr(module, "__file__", None)
        if file is None or one.__module__ == "__main__" or "site-packages" in Path(file).parts:
            continue
        if Path(file).suffix == ".py" and one.__module__.partition(".")[0] not in sys.stdlib_module_names:
            yield str(Path(file).resolve())


def _classes(given: Any) -> Iterable[Any]:
    from torch import nn
    from torch.utils.data import DataLoader

    if given is None:
        return []
    if isinstance(given, nn.Module):
        return {type(one) for one in given.modules()}
    if isinstance(given, DataLoader):
        return [type(given.dataset), *([given.collate_fn] if inspect.isfunction(given.collate_fn) else [])]
    return [given if inspect.isfunction(given) else type(given)]
