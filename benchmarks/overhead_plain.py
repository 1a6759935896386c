"""The plain PyTorch script that benchmarks/overhead.py compares KDQ with, and the nets and data of both.

It does what the recipe of overhead.py asks of KDQ, as one would write it by hand: it trains a teacher, keeps its
logits, trains a student with them, and saves both. It checks nothing, keeps no state to resume from and tracks nothing.

```
python benchmarks/overhead_plain.py DATA.npz TEACHER_EPOCHS STUDENT_EPOCHS FOLDER middle|small
```
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE, DECAY, WARMUP, BATCH = 2e-3, 1e-4, 0.05, 64
ALPHA, TEMPERATURE = 0.9, 4.0
CLASSES = 10


def net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.BatchNorm2d(4 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, CLASSES),
    )  # fmt: skip


def middle_teacher() -> nn.Module:
    return net(96)


def middle_student() -> nn.Module:
    return net(48)


def small_teacher() -> nn.Module:
    return net(32)


def small_student() -> nn.Module:
    return net(16)


NETS = {"middle": (middle_teacher, middle_student), "small": (small_teacher, small_student)}
SIDES = {"middle": 28, "small": 16}
"""Height and width of the images."""


def write_data(file: Path, size: str) -> None:
    """Write noisy images of ten patterns, `[N, 1, H, W]`, in three splits."""
    random, side = np.random.default_rng(0), SIDES[size]
    patterns = random.normal(size=(CLASSES, 1, side, side))
    arrays = {}
    for split, number in (("train", 4096), ("validation", 512), ("test", 512)):
        y = random.integers(0, CLASSES, number)
        arrays |= {f"x_{split}": (patterns[y] + 2 * random.normal(size=(number, 1, side, side))).astype(np.float32)}
        arrays |= {f"y_{split}": y}
    np.savez(file, **arrays)


Data = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def batches(count: int, size: int, seed: int | None = None) -> Iterator[Tensor]:
    """Numbers of the samples of each batch, shuffled if there is a seed."""
    if seed is None:
        return iter(torch.arange(count).split(size))
    return iter(torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(size))


def train(model: nn.Module, loss: Loss, data: Data, epochs: int) -> None:
    """Train with AdamW, warm-up and cosine; look at the validation split after each epoch."""
    model.to(memory_format=torch.channels_last)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    x = data["x_train"]
    total, step = epochs * math.ceil(len(x) / BATCH), 0
    for epoch in range(epochs):
        model.train()
        summed = 0.0
        for ids in batches(len(x), BATCH, epoch):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, total)
            optimizer.zero_grad(set_to_none=True)
            value = loss(model(x[ids].contiguous(memory_format=torch.channels_last)), ids)
            value.backward()
            optimizer.step()
            summed += value.item()
            step += 1
        figures = validate(model, data)
        print(f"epoch {epoch + 1}: loss {summed * BATCH / len(x):.4g}, validation {figures}", flush=True)
    model.eval()


def rate(step: int, total: int) -> float:
    """The learning rate of a step, from 0."""
    warm = WARMUP * total
    if step + 1 <= warm:
        return RATE * (step + 1) / warm
    return RATE * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, step - warm) / max(1.0, total - warm))))


@torch.no_grad()
def validate(model: nn.Module, data: Data) -> tuple[float, float]:
    """Loss and accuracy on the validation split."""
    model.eval()
    x, y = data["x_validation"], data["y_validation"]
    logits = torch.cat([model(x[ids]) for ids in batches(len(x), 256)])
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Accuracy on the test split."""
    x, y = data["x_test"], data["y_test"]
    return float((model.eval()(x).argmax(1) == y).float().mean())


def read(file: str) -> Data:
    """The arrays of the data file."""
    return {name: torch.from_numpy(array) for name, array in np.load(file).items()}


def main(file: str, teacher_epochs: int, student_epochs: int, folder: Path, size: str) -> dict[str, float]:
    """Do all steps; gives the seconds of both trainings and the student's accuracy."""
    data = read(file)
    torch.manual_seed(0)
    teacher, student = NETS[size]
    taught_by, y = teacher(), data["y_train"]
    began = time.monotonic()
    train(taught_by, lambda logits, ids: F.cross_entropy(logits, y[ids]), data, teacher_epochs)
    first = time.monotonic() - began
    torch.save(taught_by.state_dict(), folder / "teacher.pt")
    with torch.no_grad():
        kept = torch.cat([taught_by(data["x_train"][ids]) for ids in batches(len(y), 256)])
    log_soft = (kept / TEMPERATURE).log_softmax(1)

    def distilled(logits: Tensor, ids: Tensor) -> Tensor:
        soft = F.kl_div((logits / TEMPERATURE).log_softmax(1), log_soft[ids], reduction="batchmean", log_target=True)
        return ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * F.cross_entropy(logits, y[ids])

    pupil = student()
    began = time.monotonic()
    train(pupil, distilled, data, student_epochs)
    second = time.monotonic() - began
    torch.save(pupil.state_dict(), folder / "student.pt")
    return {"teacher_seconds": first, "student_seconds": second, "top1": accuracy(pupil, data)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])))
