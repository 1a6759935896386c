"""What all kits share: the description of each option, and who hears of the promises that are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Plugin

Tell = Callable[[str], None]
"""Hears of each promise that a plug-in keeps, in words."""


def silent(_promise: str) -> None:
    """Tell nobody."""


def described(plugin: Plugin) -> None:
    """Check that each option has a description.

    Raises:
        AssertionError: one has none.
    """
    of = type(plugin)
    bare = [option for option, field in of.model_fields.items() if not field.description]
    assert not bare, f"every option of {of.__name__} should have a description, but {bare} have none"


def promise(check: Callable[..., Any]) -> str:
    """What a check looks at, from the first sentence of its docstring, "Check that ..."."""
    first, _, _ = " ".join((check.__doc__ or "").split()).partition(". ")
    return first.removeprefix("Check that ").removeprefix("Check ").rstrip(".")
