"""Workload `clinc150`: which of 150 intents a short English sentence has.

What: the in-scope sentences of CLINC150: 15,000 train, 3,000 validation, 4,500 test; 100 / 20 / 30 per intent.
Formula: hard loss = mean cross entropy. Input: numbers of lower-case words, int64 `[B, 24]`. 0 is padding, and 1 is any
    word that occurs less than twice in the training split; longer sentences are cut. No augmentation.
Source: Larson et al. 2019, https://aclanthology.org/D19-1131 (CC BY 3.0).
Defaults and where they come from: the teacher has two encoder layers, 128 wide. The student has one layer, 64 wide;
    `student_net: bag` makes it the mean of word vectors, a common model for intents on a CPU.
Costs: each process reads the file once.
Limits: the file is that of `KDQ_DATA_DIR`. Out-of-scope sentences are left out.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Batch, Field, Outputs, Split, StageError, View, Workload
from kdq_examples import files

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

FILE = "clinc150/clinc150.csv.gz"
LENGTH, CLASSES = 24, 150
NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


class Clinc150(Workload):
    """Sentences with 150 intents."""

    student_options: ClassVar[frozenset[str]] = frozenset({"student_net", "student_width"})

    student_net: Literal["transformer", "bag"] = Field(default="transformer", description="kind of the student")
    student_width: int = Field(default=64, ge=32, le=512, multiple_of=32, description="width of the student")
    teacher_width: int = Field(default=128, ge=32, le=512, multiple_of=32, description="width of the teacher")

    def fingerprint(self) -> str:
        """Return a sha256 of the file's hash and of a mark for how it is read."""
        return hashlib.sha256(f"clinc150 2: {files.sha256(FILE)}".encode()).hexdigest()

    def teacher(self) -> nn.Module:
        """Make a transformer of two layers, `[B, 24] -> [B, 150]`."""
        from kdq_examples.nets import TextTransformer

        return TextTransformer(words(), CLASSES, self.teacher_width, 2, LENGTH)

    def student(self) -> nn.Module:
        """Make a transformer of one layer, or a mean of word vectors, `[B, 24] -> [B, 150]`."""
        from kdq_examples.nets import BagOfWords, TextTransformer

        if self.student_net == "bag":
            return BagOfWords(words(), CLASSES, self.student_width)
        return TextTransformer(words(), CLASSES, self.student_width, 1, LENGTH)

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        view: View | None = None,  # noqa: ARG002 - the kind's signature
    ) -> Iterator[Batch]:
        """Yield batches of word numbers `[B, 24]` and labels `[B]`; `view` has no effect."""
        import numpy as np
        import torch

        tokens, labels = read()[split]
        order = np.arange(len(labels))
        if split == "train":
            order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(labels))
        for start in range(0, len(order), batch_size):
            ids = order[start : start + batch_size]
            inputs, targets = torch.from_numpy(tokens[ids]), torch.from_numpy(labels[ids])
            yield Batch(inputs=(inputs,), targets=targets, ids=torch.from_numpy(ids))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean cross entropy, in float32.

        Raises:
            StageError: the batch has no labels.
        """
        import torch.nn.functional as F

        if batch.targets is None:
            raise StageError("the loss of workload 'clinc150' needs labels; this batch has none")
        return F.cross_entropy(outputs.logits.float(), batch.targets)


def rows() -> Iterator[tuple[str, list[str], str]]:
    """Yield split, words and label of each in-scope sentence."""
    text = io.StringIO(files.content(FILE).decode(), newline="")
    for row in csv.DictReader(text):
        if row["label"] != "oos" and row["split"] in NAMES:
            yield NAMES[row["split"]], re.findall(r"[a-z0-9']+", row["text"].lower()), row["label"]


@functools.cache
def vocabulary() -> dict[str, int]:
    """Number each word that the training split has at least twice, starting from 2."""
    counts = Counter(word for split, text, _ in rows() if split == "train" for word in text)
    return {word: number for number, word in enumerate(sorted(w for w, n in counts.items() if n > 1), start=2)}


def words() -> int:
    """Count the word numbers."""
    return len(vocabulary()) + 2


@functools.cache
def read() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read each split: word numbers int64 `[N, 24]` and labels int64 `[N]`."""
    import numpy as np

    known = vocabulary()
    labels = {label: number for number, label in enumerate(sorted({label for _, _, label in rows()}))}
    splits: dict[str, tuple[list[list[int]], list[int]]] = {name: ([], []) for name in set(NAMES.values())}
    for split, text, label in rows():
        numbers = [known.get(word, 1) for word in text[:LENGTH]] or [1]
        splits[split][0].append(numbers + [0] * (LENGTH - len(numbers)))
        splits[split][1].append(labels[label])
    return {name: (np.array(tokens, np.int64), np.array(given, np.int64)) for name, (tokens, given) in splits.items()}
