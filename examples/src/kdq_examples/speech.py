"""Spoken digits as samples and as mel spectrograms, for every workload that reads them."""

from __future__ import annotations

import csv
import functools
import io
import wave
from typing import TYPE_CHECKING, Literal, NamedTuple

from kdq_core.api import PluginError
from kdq_examples import files

if TYPE_CHECKING:
    import numpy as np

ARCHIVE, MANIFEST = "fsdd/fsdd_recordings.zip", "fsdd/manifest.csv.gz"
RATE = 8000
"""Samples a second."""
VALIDATION = range(5, 10)
"""The official test split has the recordings 0-4 of each speaker and digit; these of the train split validate."""


class Recording(NamedTuple):
    """One spoken digit.

    Attributes:
        digit: 0 to 9.
        speaker: first name.
        take: number among the recordings of this digit by this speaker.
        test: whether it is in the official test split.
        samples: int16 `[T]`, 8,000 a second.
    """

    digit: int
    speaker: str
    take: int
    test: bool
    samples: np.ndarray


@functools.cache
def recordings() -> tuple[Recording, ...]:
    """Read all recordings, ordered by speaker, digit and take.

    Raises:
        PluginError: a recording is missing, or is not 8 kHz, mono and 16 bit.
    """
    rows = list(csv.DictReader(io.StringIO(files.content(MANIFEST).decode(), newline="")))
    sounds = files.archive(ARCHIVE)
    missing = [row["file"] for row in rows if row["file"] not in sounds]
    if missing:
        raise PluginError(f"{ARCHIVE!r} has no {missing[0]!r}, which {MANIFEST!r} lists; fetch both files again")
    found = [
        Recording(
            int(row["digit"]), row["speaker"], int(row["index"]), row["split"] == "test",
            samples(row["file"], sounds[row["file"]]),
        )
        for row in rows
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda one: (one.speaker, one.digit, one.take)))


def samples(name: str, sound: bytes) -> np.ndarray:
    """Read the samples of a wav file, int16 `[T]`.

    Raises:
        PluginError: it is not 8 kHz, mono and 16 bit.
    """
    import numpy as np

    with wave.open(io.BytesIO(sound)) as opened:
        form = opened.getframerate(), opened.getnchannels(), 8 * opened.getsampwidth()
        if form != (RATE, 1, 16):
            raise PluginError(
                f"{name!r} in {ARCHIVE!r} has {form[0]} Hz, {form[1]} channels and {form[2]} bit; "
                "a recording has 8000 Hz, 1 channel and 16 bit"
            )
        return np.frombuffer(opened.readframes(opened.getnframes()), "<i2").astype(np.int16)


def spectrogram(samples: np.ndarray, bank: np.ndarray, window: int, hop: int, fft: int) -> np.ndarray:
    """Compute a mel power spectrogram, `[1 + T // hop, bands]`, with zeros beyond both ends.

    Args:
        samples: float `[T]`.
        bank: from `mel_bank`, `[bands, fft / 2 + 1]`.
        window: samples of the periodic Hann window, which is centred in the transform.
        hop: samples from one frame to the next.
        fft: samples of the transform.
    """
    import numpy as np
    from scipy import signal

    padded = np.pad(samples.astype(np.float64), fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft)[::hop]
    left = (fft - window) // 2
    shape = np.pad(signal.get_window("hann", window), (left, fft - window - left))
    power = np.abs(np.fft.rfft(frames * shape)) ** 2
    found: np.ndarray = (power @ bank.T).astype(np.float32)
    return found


@functools.cache
def mel_bank(rate: int, fft: int, bands: int, low: float, scale: Literal["htk", "slaney"]) -> np.ndarray:
    """Make triangular filters over the bins of a transform, `[bands, fft / 2 + 1]`.

    `htk` is log-like throughout and has peaks of 1. `slaney` is linear up to 1 kHz and gives each filter the same area.
    """
    import numpy as np

    to_mel, to_hertz = (htk_mel, htk_hertz) if scale == "htk" else (slaney_mel, slaney_hertz)
    edges = to_hertz(np.linspace(to_mel(np.array(low)), to_mel(np.array(rate / 2)), bands + 2))
    bins = np.linspace(0, rate / 2, fft // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    bank: np.ndarray = np.minimum(rising, falling).clip(0)
    return bank if scale == "htk" else bank * (2 / (edges[2:] - edges[:-2]))[:, None]


def htk_mel(hertz: np.ndarray) -> np.ndarray:
    """Convert hertz to mel as HTK does."""
    import numpy as np

    return np.asarray(2595 * np.log10(1 + hertz / 700))


def htk_hertz(mel: np.ndarray) -> np.ndarray:
    """Convert HTK's mel to hertz."""
    import numpy as np

    return np.asarray(700 * (10 ** (mel / 2595) - 1))


def slaney_mel(hertz: np.ndarray) -> np.ndarray:
    """Convert hertz to mel as Slaney's Auditory Toolbox does: 15 mel are 1 kHz."""
    import numpy as np

    above = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4)
    return np.where(hertz < 1000, hertz * 3 / 200, above)


def slaney_hertz(mel: np.ndarray) -> np.ndarray:
    """Convert Slaney's mel to hertz."""
    import numpy as np

    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((np.maximum(mel, 15) - 15) / 27))
