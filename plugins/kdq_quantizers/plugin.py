"""The quantizers that come with KDQ."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl

KDQ_PLUGIN_API = ">=1,<2"


@hookimpl
def kdq_quantizers() -> Iterator[PluginSpec]:
    """Name them; each class is loaded when a recipe needs it."""
    yield PluginSpec(
        name="minmax-qat",
        target="kdq_quantizers.minmax_qat:MinMaxQat",
        summary="W8A8 training with min-max ranges: weights per channel, activations by moving average",
    )
