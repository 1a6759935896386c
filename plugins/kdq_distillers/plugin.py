"""The distillers that come with KDQ."""

from collections.abc import Iterator

from kdq_core.api import PluginSpec, hookimpl

NAMES = (
    ("logit-kd", "logit_kd:LogitKd", "softened logits and hard labels (Hinton et al. 2015)"),
    ("mse-logits", "mse_logits:MseLogits", "squared difference of logits or probabilities (Ba and Caruana 2014)"),
    ("logistic", "logistic:Logistic", "logistic loss of margins, each class against the others (Menon et al. 2020)"),
    ("hard-label", "hard_label:HardLabel", "the teacher's answer as a label (Touvron et al. 2021)"),
    ("dkd", "dkd:Dkd", "true class and other classes weighed apart (Zhao et al. 2022)"),
    ("dist", "dist:Dist", "correlations between classes and between samples (Huang et al. 2022)"),
    (
        "multi-label-kd",
        "multi_label_kd:MultiLabelKd",
        "independent sigmoids, several labels a sample (Yang et al. 2023)",
    ),
    ("fitnet", "fitnet:Fitnet", "hints: hidden layers reproduce the teacher's (Romero et al. 2015)"),
    (
        "attention-transfer",
        "attention_transfer:AttentionTransfer",
        "where hidden layers are active (Zagoruyko and Komodakis 2017)",
    ),
    ("rkd", "rkd:Rkd", "distances and angles between samples (Park et al. 2019)"),
    ("similarity", "similarity:Similarity", "which samples are alike (Tung and Mori 2019)"),
    ("crd", "crd:Crd", "contrast with the negatives of the batch (Tian et al. 2020)"),
    ("token-kd", "token_kd:TokenKd", "softened logits at each position of a sequence (Kim and Rush 2016)"),
    ("regression-kd", "regression_kd:RegressionKd", "squared or Huber difference of numbers, such as ratings"),
    ("mixed-kd", "mixed_kd:MixedKd", "groups of exclusive classes beside independent labels"),
)
"""Name, class and summary of each distiller."""


@hookimpl
def kdq_distillers() -> Iterator[PluginSpec]:
    """Yield one entry per distiller. KDQ loads its class when a recipe needs it."""
    for name, target, summary in NAMES:
        yield PluginSpec(name=name, target=f"kdq_distillers.{target}", summary=summary)
