"""The plug-ins of this distribution."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl

KDQ_PLUGIN_API = ">=1,<2"


@hookimpl
def kdq_quantizers() -> Iterator[PluginSpec]:
    """List the quantizers by name; KDQ imports a class when a recipe needs it."""
    yield PluginSpec(
        name="guest-rounding",
        target="kdq_guest_rounding.rounding:GuestRounding",
        summary="widest range seen, times a margin",
    )
