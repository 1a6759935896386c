"""The quantizers that come with KDQ."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl

KDQ_PLUGIN_API = ">=1,<2"


@hookimpl
def kdq_quantizers() -> Iterator[PluginSpec]:
    """Name them; each class is loaded when a recipe needs it."""
    yield from ()
