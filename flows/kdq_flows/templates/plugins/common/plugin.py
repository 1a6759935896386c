"""The plug-ins of this distribution, by name; KDQ imports a class when a recipe names it."""

from kdq_core.api import PluginSpec, hookimpl

KDQ_PLUGIN_API = ">=1,<2"


@hookimpl
def kdq_quantizers():
    """List the plug-ins."""
    yield PluginSpec(
        name="my-plugin", target="kdq_my_plugin.my_plugin:MyPlugin", summary="one line for kdq plugins list"
    )
