"""Workload `fashion-mnist`: 28x28 grey images of clothes in 10 classes.

What: the train split is the first `train_images` of the 60,000 training images. The validation split is images
    55,000-59,999, the test split the 10,000 test images.
Formula: hard loss = mean cross entropy. Inputs `(pixel / 255 - 0.286) / 0.353`, float32 `[B, 1, 28, 28]`. With
    `augment`, a view of a train sample is shifted by at most 2 pixels in each direction (background outside) and
    mirrored with probability 1/2; it depends on (view, sample) alone. Without, all views are alike.
Source: Xiao et al. 2017, https://arxiv.org/abs/1708.07747 (MIT licence). Nets: He et al. 2015,
    https://arxiv.org/abs/1512.03385, section 4.2; Howard et al. 2017, https://arxiv.org/abs/1704.04861.
Defaults and where they come from: all 55,000 images, and no augmentation, which costs a student of 15 epochs about one
    point. Students have 78 thousand (ResNet-8) and 42 thousand parameters (depthwise), the teacher, a ResNet-14, 175
    thousand.
Costs: 172 MB of float32 for 55,000 images in an epoch, batch by batch.
Limits: the files are those of `KDQ_DATA_DIR`, or KDQ fetches 30 MB.
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

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

FILES = tuple(
    f"fashion-mnist/{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
VALIDATION = 55_000
SHIFT = 2
UNLABELLED = -100


class FashionMnist(Workload):
    """Clothes, 28x28 pixels, 10 classes."""

    student_options: ClassVar[frozenset[str]] = frozenset({"student_net", "student_width"})

    train_images: int = Field(default=VALIDATION, ge=1, le=VALIDATION, description="number of training images")
    labelled: int | None = Field(
        default=None, ge=1, description="number of training images that keep their label; none: all"
    )
    augment: bool = Field(default=False, description="shift and mirror the training images")
    student_net: Literal["resnet", "depthwise"] = Field(default="resnet", description="kind of the student")
    student_width: int | None = Field(
        default=None, ge=4, le=256, description="channels of the student's first stage; none: 16, depthwise 24"
    )
    teacher_width: int = Field(default=16, ge=4, le=256, description="channels of the teacher's first stage")

    def fingerprint(self) -> str:
        """Return a sha256 of the hashes of the four files and of the options that choose samples."""
        read = f"fashion-mnist 2: {self.train_images} {self.labelled} {self.augment} {files.sha256(*FILES)}"
        return hashlib.sha256(read.encode()).hexdigest()

    def teacher(self) -> nn.Module:
        """Make a ResNet-14 with three stages, `[B, 1, 28, 28] -> [B, 10]`."""
        from kdq_examples.nets import resnet

        return resnet(self.teacher_width, blocks=2)

    def student(self) -> nn.Module:
        """Make a ResNet-8 with three stages, or a small MobileNet, `[B, 1, 28, 28] -> [B, 10]`."""
        from kdq_examples.nets import DepthwiseNet, resnet

        if self.student_net == "depthwise":
            return DepthwiseNet(self.student_width or 24)
        return resnet(self.student_width or 16, blocks=1)

    def images(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Read images uint8 `[N, 28, 28]` and labels int64 `[N]`."""
        part = "t10k" if split == "test" else "train"
        images = idx(f"fashion-mnist/{part}-images-idx3-ubyte.gz")
        labels = idx(f"fashion-mnist/{part}-labels-idx1-ubyte.gz").astype("int64")
        rows = {"train": slice(0, self.train_images), "validation": slice(VALIDATION, None), "test": slice(None)}[split]
        return images[rows], labels[rows]

    def batches(
        self, split: Split, *, batch_size: int, seed: int = 0, epoch: int = 0, view: View | None = None
    ) -> Iterator[Batch]:
        """Yield batches of images `[B, 1, 28, 28]` and labels `[B]`; unlabelled samples have -100."""
        import numpy as np
        import torch

        pixels, labels = self.images(split)
        if split == "train":
            pixels = seen(pixels, view or View(seed, epoch)) if self.augment else pixels
            if self.labelled is not None:
                labels = np.where(np.arange(len(labels)) < self.labelled, labels, UNLABELLED)
        for ids in rows_of_batches(split, len(labels), batch_size, seed, epoch):
            x = (pixels[ids].astype(np.float32) / np.float32(255) - np.float32(0.286)) / np.float32(0.353)
            inputs, targets = torch.from_numpy(x[:, None]), torch.from_numpy(labels[ids])
            yield Batch(inputs=(inputs,), targets=targets, ids=torch.from_numpy(ids))

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean cross entropy over the labelled samples, in float32.

        Raises:
            StageError: the batch has no labels.
        """
        import torch.nn.functional as F

        targets = targets_of(batch, "fashion-mnist")
        known = (targets != UNLABELLED).sum().clamp(min=1)
        total = F.cross_entropy(outputs.logits.float(), targets, ignore_index=UNLABELLED, reduction="sum")
        return total / known


@functools.cache
def idx(name: str) -> np.ndarray:
    """Read the array of an IDX file of bytes, read-only."""
    import numpy as np

    raw = files.content(name)
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def seen(images: np.ndarray, view: View) -> np.ndarray:
    """Make one view of all train images, uint8 `[N, 28, 28]`; row i is the view of sample i."""
    import numpy as np

    random = stream(view.seed, view.number, 1)
    down, right = random.integers(-SHIFT, SHIFT + 1, (2, len(images)))
    mirrored = random.integers(0, 2, len(images)).astype(bool)
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    pixel = np.arange(images.shape[1])
    columns = np.where(mirrored[:, None], pixel[::-1], pixel) + (SHIFT + right)[:, None]
    rows = pixel + (SHIFT + down)[:, None]
    moved: np.ndarray = padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved
