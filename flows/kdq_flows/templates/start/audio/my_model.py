"""Spectrograms of a tone that rises, falls, stays or trembles, and a network that tells which.

KDQ calls `data`, `teacher` and `student`. Replace the two functions marked REPLACE with your own:
1. `data` gives your log-mel spectrograms and labels,
2. `net` makes your network; `teacher` and `student` say how large each one is.
"""

import torch
from torch import nn

BANDS, FRAMES, CLASSES = 32, 40, 4


def data(split):
    """REPLACE: give the samples of "train", "validation" or "test".

    Here, inputs are float32 `[N, 32, 40]`: the logarithm of the energy in 32 mel bands and 40 frames. Labels are whole
    numbers from 0 to 3. Compute spectrograms here, not in the network: the file that you ship gets them as inputs.
    """
    seed, count = {"train": (0, 1200), "validation": (1, 200), "test": (2, 400)}[split]
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=random)
    time = torch.linspace(-1, 1, FRAMES)
    paths = torch.stack((7 * time, -7 * time, 0 * time, 4 * torch.sin(9 * time)))  # how each class moves over the bands
    pitch = 10 + (BANDS - 20) * torch.rand(count, 1, generator=random) + paths[labels]
    bands = torch.arange(BANDS).view(1, -1, 1)
    energy = torch.exp(-((bands - pitch[:, None]) ** 2) / 3) + 0.1 * torch.rand(count, BANDS, FRAMES, generator=random)
    loudness = 0.5 + torch.rand(count, 1, 1, generator=random)
    return torch.log(loudness * energy + 1e-2), labels


class Net(nn.Module):
    """Convolutions over time; the mean over all frames goes to a linear layer."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(BANDS),
            nn.Conv1d(BANDS, width, 5, padding=2, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, 5, 2, 2, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, 5, 2, 2, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(width, CLASSES)

    def forward(self, mels):
        """Logits `[B, 4]` of spectrograms `[B, 32, 40]`."""
        return self.head(self.layers(mels).mean(-1))


def net(width):
    """REPLACE: make your network, without weights. It returns logits: one number for each class."""
    return Net(width)


def teacher():
    """The large network, which KDQ trains on the labels."""
    return net(48)


def student():
    """The small network, which you ship: KDQ teaches it, quantizes it and exports it."""
    return net(12)
