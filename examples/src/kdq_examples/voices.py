"""Workload `voices`: a vector for each piece of speech, close to the vectors of the same speaker.

What: pieces of 1.6 s, each joined from whole recordings of one speaker of the Free Spoken Digit Dataset. No recording
    is in two pieces of the validation or of the test split. `test: official` tests on recordings 0-4 of each digit and
    speaker, validates on 5-9 and trains on the others, of all six speakers. `test: unseen` trains on three speakers,
    validates on their recordings 0-9, and tests on all recordings of the three others.
Formula: hard loss = mean cross entropy over the speakers in the batch, of 10 times the cosine between a vector and the
    mean vector of each speaker, after Wan et al. Input: float32 `[B, 160, 40]`, the 40 mel bands that Resemblyzer
    reads, computed here: the volume raised to at least -30 dBFS, 16 kHz, frames of 25 ms every 10 ms, power without
    logarithm.
    View of a train sample: other recordings of its speaker, played 0.85 to 1.2 times as fast.
Source: Resemblyzer 0.1.4 (Apache-2.0), after Wan et al. 2017, "Generalized End-to-End Loss for Speaker
    Verification", https://arxiv.org/abs/1710.10467. Speech: FSDD (CC BY-SA 4.0).
Defaults and where they come from: the teacher is Resemblyzer's net, whose weights `python -m kdq_examples.weights
    resemblyzer FILE` writes. The student has a tenth of its weights and looks at every second frame.
Costs: a view takes about 3 seconds.
Limits: the recordings have 8 kHz, so the bands above 4 kHz are empty, and Resemblyzer was not made for that. Silence is
    not cut, because the recordings are trimmed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Batch, Field, Outputs, Split, View, Workload
from kdq_examples import files
from kdq_examples.batching import rows_of_batches, targets_of
from kdq_examples.draws import stream
from kdq_examples.speech import ARCHIVE, MANIFEST, RATE, VALIDATION, Recording, mel_bank, recordings, spectrogram

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

WIDE, WINDOW, HOP, BANDS, FRAMES = 2 * RATE, 400, 160, 40, 160
LENGTH = FRAMES * HOP
LOUDNESS = 10 ** (-30 / 20)
SLOWEST, FASTEST = 0.85, 1.2


class Voices(Workload):
    """Speech of six speakers, for speaker verification."""

    student_options: ClassVar[frozenset[str]] = frozenset({"student_width"})

    test: Literal["official", "unseen"] = Field(
        default="official", description="official: other recordings of the same speakers; unseen: three other speakers"
    )
    pieces: int = Field(default=720, ge=2, le=100_000, description="train samples")
    student_width: int = Field(default=96, ge=4, le=512, description="width of the student's LSTM")

    def fingerprint(self) -> str:
        """Return a sha256 of the files' hashes and of the split."""
        asked = f"voices 1 {self.test} {self.pieces}: {files.sha256(MANIFEST, ARCHIVE)}"
        return hashlib.sha256(asked.encode()).hexdigest()

    def teacher(self) -> nn.Module:
        """Make Resemblyzer's net, `[B, 160, 40] -> [B, 256]`."""
        from kdq_examples.voice_nets import VoiceEncoder

        return VoiceEncoder()

    def student(self) -> nn.Module:
        """Make a convolution and an LSTM of one layer, `[B, 160, 40] -> [B, 256]`."""
        from kdq_examples.voice_nets import SmallVoiceEncoder

        return SmallVoiceEncoder(self.student_width)

    def batches(
        self, split: Split, *, batch_size: int, seed: int = 0, epoch: int = 0, view: View | None = None
    ) -> Iterator[Batch]:
        """Yield batches of mel bands `[B, 160, 40]` and numbers of speakers `[B]`."""
        import torch

        if split == "train":
            mels, speakers = seen(self.test, self.pieces, view or View(seed, epoch))
        else:
            mels, speakers = held_out(self.test, split)
        for ids in rows_of_batches(split, len(speakers), batch_size, seed, epoch):
            inputs, targets = torch.from_numpy(mels[ids]), torch.from_numpy(speakers[ids])
            yield Batch(inputs=(inputs,), targets=targets, ids=torch.from_numpy(ids))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean cross entropy over the speakers in the batch, in float32.

        Raises:
            StageError: the batch does not say who speaks.
        """
        import torch
        import torch.nn.functional as F

        targets = targets_of(batch, "voices", "speakers")
        vectors = F.normalize(outputs.logits.float(), dim=1)
        there, places = torch.unique(targets, return_inverse=True)
        means = torch.zeros(len(there), vectors.shape[1], device=vectors.device).index_add(0, places, vectors)
        return F.cross_entropy(10 * vectors @ F.normalize(means, dim=1).T, places)


def chosen(test: str, split: Split, one: Recording, trained: frozenset[str]) -> bool:
    """Tell whether a recording belongs to a split; `trained` are the speakers of the other two if `test` is unseen."""
    if test == "unseen":
        if one.speaker not in trained or split == "test":
            return one.speaker not in trained and split == "test"
        return (one.test or one.take in VALIDATION) == (split == "validation")
    if one.test or split == "test":
        return one.test and split == "test"
    return (one.take in VALIDATION) == (split == "validation")


@functools.cache
def voices(test: str, split: Split) -> tuple[tuple[int, tuple[np.ndarray, ...]], ...]:
    """Give each speaker's number and recordings in a split, float32 at 16 kHz, in an order by sha256."""
    speakers = sorted({one.speaker for one in recordings()})
    trained = frozenset(speakers[: len(speakers) // 2])
    found = []
    for number, name in enumerate(speakers):
        own = [one for one in recordings() if one.speaker == name and chosen(test, split, one, trained)]
        own.sort(key=lambda one: hashlib.sha256(f"voices 1:{one.digit} {one.take}".encode()).digest())
        if own:
            found.append((number, tuple(wide(one.samples) for one in own)))
    return tuple(found)


def wide(samples: np.ndarray) -> np.ndarray:
    """Resample a recording to 16 kHz, float32."""
    import numpy as np
    from scipy import signal

    return np.asarray(signal.resample_poly(samples / 32768, 2, 1), np.float32)


@functools.cache
def held_out(test: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Join the recordings of each speaker in a split, and cut them into pieces, none of which share a recording."""
    import numpy as np

    mels, speakers = [], []
    for number, own in voices(test, split):
        for piece in joined(own):
            mels.append(features(piece))
            speakers.append(number)
    return np.stack(mels), np.array(speakers, np.int64)


def joined(own: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Join recordings to pieces of at least 1.6 s; what remains at the end is left out."""
    import numpy as np

    parts: list[np.ndarray] = []
    for one in own:
        parts.append(one)
        if sum(map(len, parts)) >= LENGTH:
            yield np.concatenate(parts)
            parts = []


@functools.lru_cache(maxsize=8)
def seen(test: str, pieces: int, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Make one view of all train samples: mel bands `[N, 160, 40]` and speakers `[N]`."""
    import numpy as np

    random, given = stream(view.seed, view.number, 1), voices(test, "train")
    mels, speakers = [], []
    for piece in range(pieces):
        number, own = given[piece % len(given)]
        order, speed = random.permutation(len(own)), random.uniform(SLOWEST, FASTEST)
        whole = next(joined([own[i] for i in np.tile(order, 4)] * 4))
        places = np.arange(0, len(whole) - 1, speed)
        played = np.interp(places, np.arange(len(whole)), whole)
        mels.append(features(np.resize(played, max(LENGTH, len(played)))))
        speakers.append(number)
    return np.stack(mels), np.array(speakers, np.int64)


def features(samples: np.ndarray) -> np.ndarray:
    """Compute Resemblyzer's input for the first 1.6 s, float32 `[160, 40]`."""
    import numpy as np

    volume = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) + 1e-12
    louder = samples * max(1.0, LOUDNESS / volume)
    return spectrogram(louder[:LENGTH], mel_bank(WIDE, WINDOW, BANDS, 0.0, "slaney"), WINDOW, HOP, WINDOW)[:FRAMES]
