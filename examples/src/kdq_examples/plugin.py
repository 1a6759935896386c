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
    yield PluginSpec(
        name="spoken-digits",
        target="kdq_examples.spoken_digits:SpokenDigits",
        summary="spoken digits as log-mel spectrograms, CNN or GRU; also a speaker nobody trained on",
    )
    yield PluginSpec(
        name="goodbooks",
        target="kdq_examples.goodbooks:Goodbooks",
        summary="stars that readers give books, two towers of embeddings",
    )
    yield PluginSpec(
        name="adult",
        target="kdq_examples.adult:Adult",
        summary="rows of a census, 2 classes, embeddings of the columns and an MLP",
    )
    yield PluginSpec(
        name="voices",
        target="kdq_examples.voices:Voices",
        summary="speech of six speakers for speaker verification, Resemblyzer and a smaller LSTM",
    )
    yield PluginSpec(
        name="g2p",
        target="kdq_examples.g2p:G2p",
        summary="English words and their phonemes, the GRU encoder and decoder of g2p-en",
    )


@hookimpl
def kdq_evaluators() -> Iterator[PluginSpec]:
    """Yield one entry per evaluator. KDQ loads its class when a recipe needs it."""
    yield PluginSpec(
        name="speaker-verification",
        target="kdq_examples.verification:SpeakerVerification",
        summary="equal-error rate of vectors of speech, over all pairs",
    )
    yield PluginSpec(
        name="phoneme-errors",
        target="kdq_examples.pronunciation:PhonemeErrors",
        summary="phoneme error rates of the workload g2p, decoding freely",
    )
    yield PluginSpec(
        name="book-ranking",
        target="kdq_examples.ranking:BookRanking",
        summary="HR@10 and NDCG@10 of the workload goodbooks, ranking all books",
    )
