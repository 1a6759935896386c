"""What this distribution brings."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl

KDQ_PLUGIN_API = ">=1,<2"


@hookimpl
def kdq_stages() -> Iterator[PluginSpec]:
    """Name them; each class is loaded when a recipe lists it."""
    yield PluginSpec(
        name="prune-channels",
        target="kdq_guest_pruning.stage:PruneChannels",
        summary="takes the weakest channels out of the student's convolutions",
    )
