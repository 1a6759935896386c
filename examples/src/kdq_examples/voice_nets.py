"""The nets of the workload `voices`: Resemblyzer's, and a smaller one that reads the same mel bands."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BANDS, SIZE = 40, 256
QUIETEST = 1e-6
"""Power below which the logarithm sees silence."""


class VoiceEncoder(nn.Module):
    """Resemblyzer's `VoiceEncoder`, with its names of weights: `[B, T, 40] -> [B, 256]`, vectors of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, SIZE)

    def forward(self, mels: Tensor) -> Tensor:
        """Return vectors `[B, 256]`."""
        _, (hidden, _) = self.lstm(mels)
        vector = F.relu(self.linear(hidden[-1]))
        unit: Tensor = vector / torch.norm(vector, dim=1, keepdim=True).clamp(min=1e-9)
        return unit


class SmallVoiceEncoder(nn.Module):
    """A convolution over the logarithm of every second frame, and an LSTM: `[B, T, 40] -> [B, 256]`, of any length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(BANDS, width, 5, 2, 2, bias=False), nn.BatchNorm1d(width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.linear = nn.Linear(width, SIZE)

    def forward(self, mels: Tensor) -> Tensor:
        """Return vectors `[B, 256]`; only their direction counts."""
        x = mels.clamp(min=QUIETEST).log().transpose(1, 2)
        x = F.relu(self.norm(self.conv(x))).transpose(1, 2)
        _, (hidden, _) = self.lstm(x)
        vector: Tensor = F.relu(self.linear(hidden[-1]))
        return vector
