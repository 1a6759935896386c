"""Pictures of a bar, a cross, a ring and a disc, and a network that tells them apart.

KDQ calls `data`, `teacher` and `student`. Replace the two functions marked REPLACE with your own:
1. `data` gives your samples and labels,
2. `net` makes your network; `teacher` and `student` say how large each one is.
"""

import torch
from torch import nn
from torch.nn import functional as F

SIZE, CLASSES = 16, 4


def data(split):
    """REPLACE: give the samples of "train", "validation" or "test".

    A map-style data set, a DataLoader, or a pair (inputs, labels) of tensors or arrays will do. Here, inputs are
    float32 `[N, 1, 16, 16]`, and labels whole numbers from 0 to 3. KDQ does not scale the inputs.
    """
    seed, count = {"train": (0, 1200), "validation": (1, 200), "test": (2, 400)}[split]
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=random)
    middle = SIZE / 2 + 4 * torch.rand(count, 2, 1, 1, generator=random) - 2
    rows, columns = torch.arange(SIZE).view(1, -1, 1) - middle[:, 0], torch.arange(SIZE).view(1, 1, -1) - middle[:, 1]
    far = (rows**2 + columns**2).sqrt()
    bar, other = (rows.abs() < 1.5) & (columns.abs() < 6), (columns.abs() < 1.5) & (rows.abs() < 6)
    shapes = torch.stack((bar, bar | other, (far - 5).abs() < 1.2, far < 5), 1)  # [N, 4, 16, 16]
    drawn = shapes[torch.arange(count), labels][:, None].float()
    return drawn + 0.3 * torch.randn(drawn.shape, generator=random), labels


class Net(nn.Module):
    """Two convolutions, with a residual addition, and a linear layer."""

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images):
        """Logits `[B, 4]` of images `[B, 1, 16, 16]`."""
        x = self.stem(images)
        return self.head(F.adaptive_avg_pool2d(x + self.block(x), 1).flatten(1))


def net(width):
    """REPLACE: make your network, without weights. It returns logits: one number for each class."""
    return Net(width)


def teacher():
    """The large network, which KDQ trains on the labels."""
    return net(32)


def student():
    """The small network, which you ship: KDQ teaches it, quantizes it and exports it."""
    return net(12)
