"""Workload `spoken-digits`: which digit somebody says.

What: the recordings of the Free Spoken Digit Dataset: six speakers, ten digits, 50 of each. `test: official` tests on
    the official split (recordings 0-4 of each digit and speaker), validates on recordings 5-9 and trains on the others.
    `test: theo` trains and validates on the same recordings of the five other speakers, and tests on all 500 of theo,
    whom no model has heard.
Formula: hard loss = mean cross entropy. Input: float32 `[B, 1, 40, 64]`, the logarithm of 40 mel bands in 64 frames of
    12.5 ms. The mean of each band over the recording is subtracted, which removes the microphone, and the values are
    divided by 3. Shorter recordings are centred between zeros; of longer ones, KDQ takes the 0.8 s of most energy.
    With `augment`, a view of a train sample is stretched in time by 0.85-1.15 and in frequency by 0.9-1.1, and shifted
    by up to 4 frames and 1 band, with one block of up to 8 frames and one of up to 6 bands set to zero; it depends on
    (view, sample) alone.
Source: Jackson et al. 2018, Free Spoken Digit Dataset (CC BY-SA 4.0). Masks: Park et al. 2019, "SpecAugment",
    https://arxiv.org/abs/1904.08779. Stretching in frequency: Jaitly and Hinton 2013, "Vocal Tract Length Perturbation
    (VTLP) improves speech recognition".
Defaults and where they come from: sizes of the students that train in minutes on two CPU cores.
Costs: each process computes the spectrograms once, in about 3 seconds.
Limits: 300 test recordings of the official split give a 95 % interval of about 2 points around 98 %. One unseen speaker
    says little about others.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Batch, Field, Outputs, Split, View, Workload
from kdq_examples import files
from kdq_examples.batching import rows_of_batches, targets_of
from kdq_examples.draws import stream
from kdq_examples.speech import ARCHIVE, MANIFEST, RATE, VALIDATION, Recording, mel_bank, recordings, spectrogram

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

BANDS, FRAMES, WINDOW, HOP, FFT = 40, 64, 200, 100, 256
UNSEEN = "theo"


class SpokenDigits(Workload):
    """Ten spoken digits as log-mel spectrograms."""

    student_options: ClassVar[frozenset[str]] = frozenset({"student_net", "student_width"})

    test: Literal["official", "theo"] = Field(
        default="official", description="official: recordings 0-4 of each speaker; theo: a speaker nobody trains on"
    )
    student_net: Literal["cnn", "gru"] = Field(default="cnn", description="kind of the student")
    student_width: int = Field(default=16, ge=4, le=256, description="channels of the CNN; 4 of them are one GRU unit")
    teacher_width: int = Field(default=20, ge=4, le=256, description="channels of the teacher's first layer")
    augment: bool = Field(default=True, description="stretch, shift and mask the training spectrograms")

    def fingerprint(self) -> str:
        """Return a sha256 of the files' hashes and of the split."""
        return hashlib.sha256(f"spoken-digits 1 {self.test}: {files.sha256(MANIFEST, ARCHIVE)}".encode()).hexdigest()

    def teacher(self) -> nn.Module:
        """Make a residual CNN, `[B, 1, 40, 64] -> [B, 10]`."""
        from kdq_examples.speech_nets import DigitCnn

        return DigitCnn(self.teacher_width, blocks=2)

    def student(self) -> nn.Module:
        """Make a CNN or a GRU, `[B, 1, 40, 64] -> [B, 10]`."""
        from kdq_examples.speech_nets import DigitCnn, DigitGru

        if self.student_net == "gru":
            return DigitGru(BANDS, 4 * self.student_width)
        return DigitCnn(self.student_width, blocks=1)

    def batches(
        self, split: Split, *, batch_size: int, seed: int = 0, epoch: int = 0, view: View | None = None
    ) -> Iterator[Batch]:
        """Yield batches of spectrograms `[B, 1, 40, 64]` and digits `[B]`."""
        import torch

        images, labels = load(self.test, split)
        if split == "train" and self.augment:
            images = augmented(images, view or View(seed, epoch))
        for ids in rows_of_batches(split, len(labels), batch_size, seed, epoch):
            inputs, targets = torch.from_numpy(images[ids][:, None]), torch.from_numpy(labels[ids])
            yield Batch(inputs=(inputs,), targets=targets, ids=torch.from_numpy(ids))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean cross entropy, in float32.

        Raises:
            StageError: the batch has no labels.
        """
        import torch.nn.functional as F

        targets = targets_of(batch, "spoken-digits")
        return F.cross_entropy(outputs.logits.float(), targets)


def chosen(test: str, split: Split, one: Recording) -> bool:
    """Tell whether a recording belongs to a split."""
    if test == UNSEEN and (one.speaker == UNSEEN or split == "test"):
        return one.speaker == UNSEEN and split == "test"
    if one.test or split == "test":
        return one.test and split == "test"
    return (one.take in VALIDATION) == (split == "validation")


@functools.cache
def load(test: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Compute the spectrograms of a split, float32 `[N, 40, 64]`, and its digits, int64 `[N]`."""
    import numpy as np

    found = [one for one in recordings() if chosen(test, split, one)]
    images = np.stack([features(one.samples) for one in found])
    return images, np.array([one.digit for one in found], np.int64)


def features(samples: np.ndarray) -> np.ndarray:
    """Compute the input for one recording, float32 `[40, 64]`."""
    import numpy as np

    bank = mel_bank(RATE, FFT, BANDS, 60.0, "htk")
    power = spectrogram(samples / np.float32(32768), bank, WINDOW, HOP, FFT).T
    if power.shape[1] > FRAMES:
        energy = np.convolve(power.sum(0), np.ones(FRAMES), "valid")
        power = power[:, energy.argmax() :][:, :FRAMES]
    logs = np.log(power + np.float32(1e-6))
    logs = (logs - logs.mean(1, keepdims=True)) / np.float32(3)
    free = FRAMES - logs.shape[1]
    return np.pad(logs, ((0, 0), (free // 2, free - free // 2))).astype(np.float32)


def augmented(images: np.ndarray, view: View) -> np.ndarray:
    """Make one view of all train samples, `[N, 40, 64]`; row i is the view of sample i."""
    import numpy as np

    random = stream(view.seed, view.number, 1)
    count = len(images)
    slow, high, late, up = random.uniform(-1, 1, (4, count)).astype(np.float32)
    times = resampling(FRAMES, 1 + np.float32(0.15) * slow, 4 * late)
    bands = resampling(BANDS, 1 + np.float32(0.1) * high, up)
    moved: np.ndarray = bands @ images @ times.transpose(0, 2, 1)
    for axis, size, most in ((2, FRAMES, 8), (1, BANDS, 6)):
        length, start = random.integers(0, most + 1, (count, 1)), random.integers(0, size, (count, 1))
        place = np.arange(size)
        kept = (place < start) | (place >= start + length)
        moved = moved * np.expand_dims(kept, 3 - axis)
    return moved.astype(np.float32)


def resampling(size: int, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Matrices `[N, size, size]` for linear interpolation along one axis, zero outside."""
    import numpy as np

    place, middle = np.arange(size, dtype=np.float32), np.float32((size - 1) / 2)
    source = (place - middle - shift[:, None]) / scale[:, None] + middle
    weights: np.ndarray = (1 - np.abs(source[:, :, None] - place)).clip(0)
    return weights
