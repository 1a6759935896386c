"""Workload `image-folder`: a model of yours on a folder of images, one subfolder for each class.

What: `FOLDER/CLASS/*.png`, or `FOLDER/SPLIT/CLASS/*.png` with the splits `train`, `validation` (or `val`) and `test`.
    The input is float32 `[B, C, H, W]`. Classes are numbered in the sorted order of their folders.
Formula: the shorter side is scaled to `size` (bilinear), the middle is cut out; x = (pixel / 255 - mean) / std.
Source: none; the preprocessing is the common one for image classifiers.
Defaults and where they come from: mean 0 and std 1, so pixels are in [0, 1]; a tenth of the images for validation and a
    tenth for the test.
Costs: images are decoded when a batch needs them. A plan reads every file once, for the fingerprint.
Limits: no augmentation. Needs Pillow.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdq_core.api import Batch, Field, RecipeError, StageError, View
from kdq_workloads.arrays import digest
from kdq_workloads.samples import Samples, batch_of
from kdq_workloads.splits import WHOLE, SplitModels

if TYPE_CHECKING:
    import numpy as np

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


class ImageFolder(SplitModels):
    """Your model on a folder of images."""

    folder: str = Field(min_length=1, description="the folder")
    size: int = Field(default=224, ge=1, le=4096, description="height and width of the input, in pixels")
    channels: Literal[1, 3] = Field(default=3, description="1: grey; 3: red, green, blue")
    mean: tuple[float, ...] = Field(
        default=(0.0,), description="subtracted from pixels in [0, 1]; one, or one a channel"
    )
    std: tuple[float, ...] = Field(default=(1.0,), description="they are divided by it; one, or one a channel")

    def fingerprint(self) -> str:
        """Sha256 of every file's path and content, and of the splits."""
        parts = [f"{path.relative_to(self.folder).as_posix()}\0{digest(path)}" for path in images(self.folder)]
        return hashlib.sha256("\0".join([self.split_text(), *parts]).encode()).hexdigest()

    def given(self) -> dict[str, Samples]:
        """The splits that have folders, or all images."""
        by_split: dict[str, list[Path]] = {}
        paths = images(self.folder)
        splits = {FOLDERS.get(path.relative_to(self.folder).parts[0], WHOLE) for path in paths}
        for path in paths:
            split = WHOLE if WHOLE in splits else FOLDERS[path.relative_to(self.folder).parts[0]]
            by_split.setdefault(split, []).append(path)
        classes = sorted({path.parent.name for path in paths})
        number = {name: index for index, name in enumerate(classes)}
        missing = {"train", "test"} - by_split.keys()
        if WHOLE not in by_split and missing:
            raise RecipeError(
                f"{self.folder!r} has folders of splits, but none of {min(missing)!r}; add it, or have only folders of "
                "classes, so that KDQ makes the splits"
            )
        return {
            split: Images(tuple(some), tuple(number[path.parent.name] for path in some), self)
            for split, some in by_split.items()
        }


@dataclass(frozen=True)
class Images:
    """Images of one split.

    Attributes:
        paths: their files.
        labels: their class numbers.
        how: the workload, which says how they are read.
    """

    paths: Sequence[Path]
    labels: Sequence[int]
    how: ImageFolder

    def __len__(self) -> int:
        """How many there are."""
        return len(self.paths)

    def batch(self, ids: np.ndarray, view: View | None) -> Batch:  # noqa: ARG002
        """Decode these images."""
        import numpy as np

        pictures = np.stack([picture(str(self.paths[one]), self.how) for one in ids])
        return batch_of([pictures], np.array([self.labels[one] for one in ids]), ids)

    def classes(self) -> np.ndarray:
        """Their class numbers."""
        import numpy as np

        return np.array(self.labels)

    def columns(self) -> dict[str, Any]:
        """None: the folders are the classes."""
        return {}


def images(folder: str) -> tuple[Path, ...]:
    """The images in subfolders of `folder`, sorted.

    Raises:
        RecipeError: it is no folder, or has no images in subfolders.
    """
    root = Path(folder)
    if not root.is_dir():
        raise RecipeError(
            f"{folder!r} is no folder, seen from {str(Path.cwd())!r}; give one with an image folder a class"
        )
    found = sorted(path for path in root.glob("*/**/*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not found:
        raise RecipeError(
            f"{folder!r} has no images in subfolders; put those of each class in a folder of its name (endings: "
            f"{', '.join(ENDINGS)})"
        )
    return tuple(found)


@functools.lru_cache(maxsize=20_000)
def picture(path: str, how: ImageFolder) -> Any:
    """Read an image: float32 `[C, size, size]`.

    Raises:
        StageError: the file is damaged, or too large to be an image.
    """
    import numpy as np
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            pixels = image.convert("L" if how.channels == 1 else "RGB")
    except Exception as error:
        raise StageError(f"image {path!r} cannot be read: {type(error).__name__}: {error}; mend or remove it") from None
    scale = how.size / min(pixels.size)
    wide, high = (max(how.size, round(side * scale)) for side in pixels.size)
    left, top = (wide - how.size) // 2, (high - how.size) // 2
    cut = pixels.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + how.size, top + how.size))
    array = np.asarray(cut, np.float32).reshape(how.size, how.size, how.channels).transpose(2, 0, 1) / 255
    mean, std = (np.array(one, np.float32).reshape(-1, 1, 1) for one in (how.mean, how.std))
    return np.ascontiguousarray((array - mean) / std)
