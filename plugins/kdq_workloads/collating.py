"""Makes a batch from the items of a data set. An item may hold plain lists of numbers, as those of Hugging Face do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdq_core.api import StageError


def collated(items: list[Any]) -> Any:
    """Stack items as `torch.utils.data.default_collate` does, but take a list of numbers as an array.

    Raises:
        StageError: the items differ in shape, or hold something that cannot be stacked.
    """
    from torch.utils._pytree import tree_map
    from torch.utils.data import default_collate

    plain = [dict(item) if isinstance(item, Mapping) else item for item in items]
    arrays = [tree_map(_array, item, is_leaf=_is_numbers) for item in plain]
    _check_shapes(arrays)
    try:
        return default_collate(arrays)
    except TypeError as error:
        raise StageError(
            f"the data set's items cannot be stacked to a batch: {str(error).splitlines()[0]}; turn every part of an "
            "item into a tensor in the data's own code, or return a DataLoader with a collate_fn"
        ) from error


def _is_numbers(given: Any) -> bool:
    """Whether this is a list of numbers, or of such lists."""
    while isinstance(given, list) and given:
        given = given[0]
    return given == [] if isinstance(given, list) else isinstance(given, int | float)


def _array(given: Any) -> Any:
    import torch

    if not isinstance(given, list):
        return given
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError) as error:
        raise StageError(
            f"an item of the data set has a list that is no array of numbers: {error}; pad its rows to one length, and "
            "fill what is missing"
        ) from error


def _check_shapes(items: list[Any]) -> None:
    """Refuse items of different shapes, by name."""
    from torch.utils._pytree import keystr, tree_leaves_with_path

    first = {keystr(path): shape_of(leaf) for path, leaf in tree_leaves_with_path(items[0])}
    for item in items[1:]:
        for path, leaf in tree_leaves_with_path(item):
            name = keystr(path)
            if name in first and first[name] != shape_of(leaf):
                one, other = sorted((first[name], shape_of(leaf)))
                raise StageError(
                    f"items of the data set differ in shape: {name.strip('[]') or 'one'} is {one} in one and "
                    f"{other} in another; pad them to one size, or return a DataLoader whose collate_fn pads "
                    "each batch"
                )


def shape_of(leaf: Any) -> tuple[int, ...]:
    """The shape of an array; a number has the empty one."""
    return tuple(getattr(leaf, "shape", ()))
