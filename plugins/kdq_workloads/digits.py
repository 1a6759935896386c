"""Workload `digits`: classify scikit-learn's bundled 8x8 images of handwritten digits.

What: 1,797 grey images in 10 classes, from a file that comes with scikit-learn, so nothing is downloaded. The data is
    small enough that the whole chain from teacher to registered int8 file runs in a minute on two cores.
Formula: hard loss = mean cross entropy. Inputs are `pixel / 16`, float32 `[B, 1, 8, 8]` in [0, 1].
    Split, stratified: the samples of each class are ordered by the sha256 of their number, and the sample of rank r
    among n gets the place (r + 1/2) / n. In the order of places, the first 300 samples are test, the next 300
    validation, and the other 1,197 train.
    View of a train sample: scaled by 0.9-1.1 and shifted by at most one pixel in each direction (bilinear,
    zero outside), then normal noise of 0.03, clipped to [0, 1]. It depends on (seed and number of the view,
    sample) alone; the order of samples depends on (seed, epoch).
Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits" (UCI), its test part as bundled with
    scikit-learn. Counter-based generator: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
Defaults and where they come from: the teacher's width (480,450 parameters) is chosen so that it passes 98 % on
    validation in ten epochs. The student's width (221,966) is chosen so that its weights, not its graph, make up most
    of the file.
Costs: a view of the whole train split takes a few milliseconds; each process reads the data once.
Limits: 300 test images give a 95 % interval of about 3 points around 98 %: smaller differences are noise.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batch, Field, Outputs, PluginError, Split, StageError, View, Workload

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

HELD_OUT = 300
SPLIT = f"digits split 1: stratified by sha256 rank, {HELD_OUT} test, {HELD_OUT} validation, the others train"
SHIFT, SCALE, NOISE = 1.0, 0.1, 0.03


class Digits(Workload):
    """Handwritten digits, 8x8 pixels, 10 classes; train 1,197, validation 300, test 300."""

    student_options: ClassVar[frozenset[str]] = frozenset({"student_width"})

    teacher_width: int = Field(default=40, ge=4, le=256, description="channels of the teacher's first block")
    student_width: int = Field(default=56, ge=4, le=256, description="channels of the student's first block")
    augment: bool = Field(
        default=True, description="shift, scale and add noise to train images, differently in each epoch"
    )

    def fingerprint(self) -> str:
        """Return the sha256 of the data file's bytes and of the split's definition."""
        return hashlib.sha256(data_file().read_bytes() + SPLIT.encode()).hexdigest()

    def teacher(self) -> nn.Module:
        """Make a residual net of three blocks, `[B, 1, 8, 8] -> [B, 10]`."""
        from kdq_workloads.digits_models import teacher

        return teacher(self.teacher_width)

    def student(self) -> nn.Module:
        """Make a residual net of two blocks, `[B, 1, 8, 8] -> [B, 10]`."""
        from kdq_workloads.digits_models import student

        return student(self.student_width)

    def batches(
        self, split: Split, *, batch_size: int, seed: int = 0, epoch: int = 0, view: View | None = None
    ) -> Iterator[Batch]:
        """Yield batches of images `[B, 1, 8, 8]` and labels `[B]`; the last one may be smaller."""
        import numpy as np
        import torch

        images, labels = load(split)
        order = np.arange(len(labels))
        if split == "train":
            order = stream(seed, epoch, 0).permutation(len(labels))
            images = augmented(images, view or View(seed, epoch)) if self.augment else images
        for start in range(0, len(order), batch_size):
            ids = order[start : start + batch_size]
            inputs, targets = torch.from_numpy(images[ids]), torch.from_numpy(labels[ids])
            yield Batch(inputs=(inputs,), targets=targets, ids=torch.from_numpy(ids))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean cross entropy, in float32.

        Raises:
            StageError: the batch has no labels.
        """
        import torch.nn.functional as F

        if batch.targets is None:
            raise StageError(
                "the loss of workload 'digits' needs labels; this batch has none; train on its own batches"
            )
        return F.cross_entropy(outputs.logits.float(), batch.targets)


def data_file() -> Path:
    """Find the bundled images without importing scikit-learn.

    Raises:
        PluginError: scikit-learn, or the file in it, is missing.
    """
    spec = importlib.util.find_spec("sklearn")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise PluginError(
            "workload 'digits' reads the images that come with scikit-learn, which are not there; "
            "install it with `pip install scikit-learn`"
        )
    return path


@functools.cache
def load(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Read `split`: images float32 `[N, 1, 8, 8]` in [0, 1] and labels int64 `[N]`, in fixed order, read-only."""
    import numpy as np

    rows = np.array([line.split(b",") for line in gzip.decompress(data_file().read_bytes()).splitlines()], np.float32)
    labels = rows[:, 64].astype(np.int64)
    chosen = np.array(split_ids(labels.tolist())[split])
    images, labels = rows[chosen, :64].reshape(-1, 1, 8, 8) / np.float32(16), labels[chosen]
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def split_ids(labels: list[int]) -> dict[Split, list[int]]:
    """Assign each row to a split: row numbers by split, from the labels of all rows."""
    digests = [hashlib.sha256(f"digits split 1:{row}".encode()).hexdigest() for row in range(len(labels))]
    by_class: dict[int, list[int]] = {}
    for row in sorted(range(len(labels)), key=lambda row: digests[row]):
        by_class.setdefault(labels[row], []).append(row)
    place = {row: ((rank + 0.5) / len(rows), row) for rows in by_class.values() for rank, row in enumerate(rows)}
    order = sorted(place, key=lambda row: place[row])
    test, validation, train = order[:HELD_OUT], order[HELD_OUT : 2 * HELD_OUT], order[2 * HELD_OUT :]
    return {"train": sorted(train), "validation": sorted(validation), "test": sorted(test)}


def stream(seed: int, number: int, purpose: int) -> np.random.Generator:
    """Make a Philox stream that belongs to (seed, number, purpose) alone."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, purpose]))


def augmented(images: np.ndarray, view: View) -> np.ndarray:
    """Make one view of all train samples, `[N, 1, 8, 8]`; row i is the view of sample i, in any batch."""
    import numpy as np

    random = stream(view.seed, view.number, 1)
    scale, down, right = random.uniform(-1, 1, (3, len(images))).astype(np.float32)
    rows = resampling(1 + SCALE * scale, SHIFT * down)
    columns = resampling(1 + SCALE * scale, SHIFT * right)
    moved = rows @ images[:, 0] @ columns.transpose(0, 2, 1)
    noisy = moved + np.float32(NOISE) * random.standard_normal(moved.shape, dtype=np.float32)
    clipped: np.ndarray = noisy.clip(0, 1).reshape(-1, 1, 8, 8)  # [:, None] gives strides of channels last
    return clipped


def resampling(scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Matrices `[N, 8, 8]` for bilinear interpolation along one axis: output pixel = sum of weight * input pixel."""
    import numpy as np

    pixel = np.arange(8, dtype=np.float32)
    source = (pixel - 3.5 - shift[:, None]) / scale[:, None] + 3.5
    weights: np.ndarray = (1 - np.abs(source[:, :, None] - pixel)).clip(0)
    return weights
