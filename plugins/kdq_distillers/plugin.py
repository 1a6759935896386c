"""The distillers that come with KDQ."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl

KDQ_PLUGIN_API = ">=1,<2"


@hookimpl
def kdq_distillers() -> Iterator[PluginSpec]:
    """Name them; each class is loaded when a recipe needs it."""
    yield PluginSpec(
        name="logit-kd",
        target="kdq_distillers.logit_kd:LogitKd",
        summary="softened logits and hard labels (Hinton et al. 2015)",
    )
