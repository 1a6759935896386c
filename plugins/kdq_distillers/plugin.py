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
    yield PluginSpec(
        name="mse-logits",
        target="kdq_distillers.mse_logits:MseLogits",
        summary="squared difference of logits or probabilities (Ba and Caruana 2014)",
    )
    yield PluginSpec(
        name="logistic",
        target="kdq_distillers.logistic:Logistic",
        summary="logistic loss of margins, each class against the others (Menon et al. 2020)",
    )
    yield PluginSpec(
        name="hard-label",
        target="kdq_distillers.hard_label:HardLabel",
        summary="the teacher's answer as a label (Touvron et al. 2021)",
    )
    yield PluginSpec(
        name="dkd",
        target="kdq_distillers.dkd:Dkd",
        summary="true class and other classes weighed apart (Zhao et al. 2022)",
    )
    yield PluginSpec(
        name="dist",
        target="kdq_distillers.dist:Dist",
        summary="correlations between classes and between samples (Huang et al. 2022)",
    )
    yield PluginSpec(
        name="multi-label-kd",
        target="kdq_distillers.multi_label_kd:MultiLabelKd",
        summary="independent sigmoids, several labels a sample (Yang et al. 2023)",
    )
    yield PluginSpec(
        name="fitnet",
        target="kdq_distillers.fitnet:Fitnet",
        summary="hints: hidden layers reproduce the teacher's (Romero et al. 2015)",
    )
