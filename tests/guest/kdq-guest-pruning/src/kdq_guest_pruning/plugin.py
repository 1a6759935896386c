"""The plug-ins of this distribution."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl

KDQ_PLUGIN_API = ">=1,<2"


@hookimpl
def kdq_stages() -> Iterator[PluginSpec]:
    """List the stages by name; KDQ imports a class when a recipe lists it."""
    yield PluginSpec(
        name="prune-channels",
        target="kdq_guest_pruning.stage:PruneChannels",
        summary="takes the weakest channels out of the student's convolutions",
    )
