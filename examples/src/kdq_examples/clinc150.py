"""Workload `clinc150`: which of 150 intents a short English sentence has.

What: the in-scope sentences of CLINC150: 15,000 train, 3,000 validation, 4,500 test; 100 / 20 / 30 per intent.
Formula: hard loss = mean cross entropy. Input: numbers of tokens, int64 `[B, 24]`, cut or padded with 0; the nets do
    not look at padding. Tokens: byte pairs of lower-case words, learned from the training sentences; 1 is a character
    that these do not have. No augmentation.
Source: Larson et al. 2019, https://aclanthology.org/D19-1131 (CC BY 3.0); tokens: Sennrich et al. 2016,
    https://arxiv.org/abs/1508.07909, as the library `tokenizers` learns them.
Defaults and where they come from: of the sentences, 99 of 100 have at most 24 tokens. The teacher has two encoder
    layers, 128 wide. The student has one, 64 wide; `student_net` makes it a GRU, or the mean of token vectors.
Costs: each process reads the file and learns the tokens once, in about a second.
Limits: the file is that of `KDQ_DATA_DIR`. Out-of-scope sentences are left out.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Batch, Field, Outputs, Split, View, Workload
from kdq_examples import files
from kdq_examples.batching import rows_of_batches, targets_of

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor, nn

FILE = "clinc150/clinc150.csv.gz"
LENGTH, CLASSES = 24, 150
NAMES: dict[str, Split] = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
SPECIAL = ["[PAD]", "[UNK]"]
"""Tokens 0 and 1."""


class Clinc150(Workload):
    """Sentences with 150 intents."""

    student_options: ClassVar[frozenset[str]] = frozenset({"student_net", "student_width", "student_dropout"})

    tokens: int = Field(default=3_000, ge=100, le=30_000, description="size of the vocabulary")
    student_net: Literal["transformer", "gru", "bag"] = Field(default="transformer", description="kind of the student")
    student_width: int = Field(default=64, ge=32, le=512, multiple_of=32, description="width of the student")
    student_dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of the student")
    teacher_width: int = Field(default=128, ge=32, le=512, multiple_of=32, description="width of the teacher")
    teacher_dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of the teacher")

    def fingerprint(self) -> str:
        """Return a sha256 of the file's hash and of a mark for how it is read."""
        return hashlib.sha256(f"clinc150 3: {self.tokens} {files.sha256(FILE)}".encode()).hexdigest()

    def teacher(self) -> nn.Module:
        """Make a transformer of two layers, `[B, 24] -> [B, 150]`."""
        from kdq_examples.text_nets import TextTransformer

        return TextTransformer(self._words(), CLASSES, self.teacher_width, 2, LENGTH, self.teacher_dropout)

    def student(self) -> nn.Module:
        """Make a transformer of one layer, a GRU, or a mean of token vectors, `[B, 24] -> [B, 150]`."""
        from kdq_examples.text_nets import BagOfWords, TextGru, TextTransformer

        if self.student_net == "bag":
            return BagOfWords(self._words(), CLASSES, self.student_width)
        if self.student_net == "gru":
            return TextGru(self._words(), CLASSES, self.student_width, self.student_dropout)
        return TextTransformer(self._words(), CLASSES, self.student_width, 1, LENGTH, self.student_dropout)

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        view: View | None = None,  # noqa: ARG002 - the kind's signature
    ) -> Iterator[Batch]:
        """Yield batches of token numbers `[B, 24]` and labels `[B]`; `view` has no effect."""
        import torch

        tokens, labels = read(files.sha256(FILE), self.tokens)[split]
        for ids in rows_of_batches(split, len(labels), batch_size, seed, epoch):
            inputs, targets = torch.from_numpy(tokens[ids]), torch.from_numpy(labels[ids])
            yield Batch(inputs=(inputs,), targets=targets, ids=torch.from_numpy(ids))

    def input_names(self) -> tuple[str, ...]:
        """Name the input of the file `tokens`."""
        return ("tokens",)

    def text_of(self, inputs: tuple[Tensor, ...]) -> str:
        """Return the sentence of a sample, as its tokens have it."""
        words = tokenizer(files.sha256(FILE), self.tokens)
        numbers = [number for number in inputs[0].tolist() if number]
        return " ".join(words.id_to_token(number) or "" for number in numbers)

    def columns(self, split: Split) -> dict[str, np.ndarray]:
        """Return the number of tokens of each sentence."""
        tokens, _ = read(files.sha256(FILE), self.tokens)[split]
        return {"length": (tokens > 0).sum(1)}

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean cross entropy, in float32.

        Raises:
            StageError: the batch has no labels.
        """
        import torch.nn.functional as F

        targets = targets_of(batch, "clinc150")
        return F.cross_entropy(outputs.logits.float(), targets)

    def _words(self) -> int:
        return tokenizer(files.sha256(FILE), self.tokens).get_vocab_size()


@functools.cache
def rows(content: str) -> list[tuple[Split, str, str]]:  # noqa: ARG001 - the sha256 of the file
    """Read split, text and label of each in-scope sentence."""
    given = csv.DictReader(io.StringIO(files.content(FILE).decode(), newline=""))
    return [(NAMES[row["split"]], row["text"], row["label"]) for row in given if row["label"] != "oos"]


@functools.cache
def tokenizer(content: str, size: int) -> Tokenizer:
    """Learn the tokens from the training sentences; it pads and cuts to 24."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # KDQ forks its stages, and a fork keeps no threads
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token=SPECIAL[1]))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    sentences = [text for split, text, _ in rows(content) if split == "train"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(sentences, trainer)
    made.enable_truncation(LENGTH)
    made.enable_padding(length=LENGTH)
    return made


@functools.cache
def read(content: str, size: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read each split: token numbers int64 `[N, 24]` and labels int64 `[N]`."""
    import numpy as np

    numbers = {label: number for number, label in enumerate(sorted({label for _, _, label in rows(content)}))}
    splits = {}
    for name in ("train", "validation", "test"):
        own = [(text, numbers[label]) for split, text, label in rows(content) if split == name]
        encoded = tokenizer(content, size).encode_batch([text for text, _ in own])
        tokens = np.array([one.ids for one in encoded], np.int64)
        splits[name] = (tokens, np.array([label for _, label in own], np.int64))
    return splits
