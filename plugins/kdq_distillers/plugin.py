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
    yield PluginSpec(
        name="attention-transfer",
        target="kdq_distillers.attention_transfer:AttentionTransfer",
        summary="where hidden layers are active (Zagoruyko and Komodakis 2017)",
    )
    yield PluginSpec(
        name="rkd",
        target="kdq_distillers.rkd:Rkd",
        summary="distances and angles between samples (Park et al. 2019)",
    )
    yield PluginSpec(
        name="similarity",
        target="kdq_distillers.similarity:Similarity",
        summary="which samples are alike (Tung and Mori 2019)",
    )
    yield PluginSpec(
        name="crd",
        target="kdq_distillers.crd:Crd",
        summary="contrast with the negatives of the batch (Tian et al. 2020)",
    )
    yield PluginSpec(
        name="token-kd",
        target="kdq_distillers.token_kd:TokenKd",
        summary="softened logits at each position of a sequence (Kim and Rush 2016)",
    )
    yield PluginSpec(
        name="regression-kd",
        target="kdq_distillers.regression_kd:RegressionKd",
        summary="squared or Huber difference of numbers, such as ratings",
    )
    yield PluginSpec(
        name="mixed-kd",
        target="kdq_distillers.mixed_kd:MixedKd",
        summary="groups of exclusive classes beside independent labels",
    )
