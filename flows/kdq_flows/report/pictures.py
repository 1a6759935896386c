"""A sample of the data as something to look at: an image, a spectrogram, the numbers of tokens, or values."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LARGEST = 144
"""Pixels of the longer side of a picture."""
SOUND = 1000
"""A sample with one axis of at least so many values is taken for sound."""
VALUES = 16
"""The most values or tokens that are written out."""


@dataclass(frozen=True)
class Picture:
    """One input of a sample: `data` is a PNG as a data address, or empty; then `text` tells the sample."""

    kind: str
    data: str = ""
    text: str = ""


def picture(sample: np.ndarray) -> Picture:
    """Show one input of one sample, `[...]` without the batch; its shape and type decide how."""
    sample = np.asarray(sample)
    squeezed = sample[0] if sample.ndim > 1 and sample.shape[0] == 1 else sample
    whole = np.issubdtype(sample.dtype, np.integer) and sample.dtype != np.uint8
    if not whole and sample.ndim == 3 and sample.shape[0] == 3 and min(sample.shape[1:]) >= 4:
        return Picture("image", png(sample.transpose(1, 2, 0)))
    if not whole and squeezed.ndim == 2 and min(squeezed.shape) >= 4:
        return Picture("image", png(squeezed))
    if not whole and squeezed.ndim == 1 and len(squeezed) >= SOUND:
        return Picture("spectrogram", png(spectrogram(squeezed)))
    flat = sample.reshape(-1)
    if whole:
        last = np.flatnonzero(flat)
        flat = flat[: last[-1] + 1] if len(last) else flat[:1]  # padding behind the text
        return Picture("tokens", text=_listed([str(int(value)) for value in flat]))
    return Picture("values", text=_listed([f"{float(value):.3g}" for value in flat]))


def spectrogram(sound: np.ndarray) -> np.ndarray:
    """Decibels by frequency and time, `[F, T]`, high frequencies on top."""
    from scipy.signal import ShortTimeFFT
    from scipy.signal.windows import hann

    size = 256
    found = ShortTimeFFT(hann(size), hop=max(size // 4, len(sound) // (2 * LARGEST)), fs=1.0)
    power = np.asarray(found.spectrogram(sound.astype(np.float64)))
    decibels = 10 * np.log10(power + 1e-12)
    return np.maximum(decibels, decibels.max() - 80)[::-1]


def png(values: np.ndarray) -> str:
    """Values `[H, W]` or `[H, W, 3]`, stretched to the whole range, as a PNG in a data address."""
    from PIL import Image

    values = np.nan_to_num(values.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    image = Image.fromarray(np.uint8(np.round((values - low) / ((high - low) or 1.0) * 255)))
    image.thumbnail((LARGEST, LARGEST))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _listed(words: Sequence[str]) -> str:
    return " ".join(words[:VALUES]) + (" ..." if len(words) > VALUES else "")
