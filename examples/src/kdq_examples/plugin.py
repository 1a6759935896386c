"""The workloads of this distribution."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl

KDQ_PLUGIN_API = ">=1,<2"


@hookimpl
def kdq_workloads() -> Iterator[PluginSpec]:
    """Yield one entry per workload. KDQ loads its class when a recipe needs it."""
    yield PluginSpec(
        name="fashion-mnist",
        target="kdq_examples.fashion_mnist:FashionMnist",
        summary="28x28 grey images of clothes, 10 classes: ResNet teacher, ResNet or depthwise student",
    )
    yield PluginSpec(
        name="clinc150",
        target="kdq_examples.clinc150:Clinc150",
        summary="short English sentences, 150 intents: transformer teacher; transformer or GRU student",
    )
