"""The store of a site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kdq_core.store.store import Store


class Placed(Protocol):
    """The part of a site that says where its store is."""

    @property
    def store(self) -> Path:
        """A folder: the store itself, or the read cache of a store with an address."""

    @property
    def store_address(self) -> str | None:
        """An fsspec address of a store for several machines."""


def open_store(site: Placed) -> Store:
    """The store of a site: that at its address, or else its folder.

    Raises:
        RecipeError: fsspec does not know the address, or the package for it is missing.
    """
    if site.store_address is None:
        from kdq_core.store.store import Store

        return Store(site.store)
    from kdq_core.store.atomic import objects_at
    from kdq_core.store.remote import RemoteStore

    return RemoteStore(site.store, objects_at(site.store_address))
