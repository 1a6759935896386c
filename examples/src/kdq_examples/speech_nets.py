"""The nets of the workload `spoken-digits`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdq_examples.nets import Block

CLASSES = 10


class DigitCnn(nn.Module):
    """A stem and three stages of residual blocks, each of which halves the map: `[B, 1, F, T] -> [B, 10]`."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width)
        stages, channels = [], width
        for stage in range(3):
            out = width * 2**stage
            for number in range(blocks):
                stages.append(Block(channels, out, 1 if number else 2))
                channels = out
        self.blocks, self.drop, self.head = nn.Sequential(*stages), nn.Dropout(0.2), nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 10]`."""
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(self.drop(x.mean((2, 3))))
        return logits


class DigitGru(nn.Module):
    """A GRU over the frames in both directions, the mean of its states and a linear head, `[B, 1, F, T] -> [B, 10]`."""

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(bands, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 10]`."""
        states, _ = self.gru(x.squeeze(1).transpose(1, 2))
        logits: Tensor = self.head(states.mean(1))
        return logits
