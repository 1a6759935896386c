"""Toy models for the quantizer kit: one for each family of operators, each trained and exported in about a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Toy:
    """A small classifier and its inputs.

    Attributes:
        name: name of its family of operators, for messages.
        model: makes a new model, with weights from torch's global generator.
        inputs: makes random inputs for a number of samples, each `[B, ...]`.
        classes: number of classes in its output `[B, classes]`.
    """

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[int, Generator], tuple[Tensor, ...]]
    classes: int


class ToyNet(nn.Module):
    """Conv, depthwise conv, residual add, pooling and linear in 1,300 parameters. Input `[B, 1, 8, 8]`, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.pointwise = nn.Conv2d(12, 12, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 10]`."""
        x = F.relu(self.stem(x))
        y = F.relu(self.norm1(self.depthwise(x)))
        x = F.max_pool2d(F.relu(self.norm2(self.pointwise(y)) + x), 2)
        logits: Tensor = self.head(torch.flatten(F.avg_pool2d(x, 2), 1))
        return logits


class ToyConv1d(nn.Module):
    """Grouped conv 1d, hard-swish, a sigmoid gate, concat. Input `[B, 4, 16]`, 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 8, 5, padding=2, groups=2)
        self.mix = nn.Conv1d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.gate = nn.Conv1d(8, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 5]`."""
        x = F.hardswish(self.stem(x))
        y = F.leaky_relu(self.norm(self.mix(x)), 0.1)
        y = y * torch.sigmoid(self.gate(y.mean(-1, keepdim=True)))
        logits: Tensor = self.head(torch.cat([x, F.max_pool1d(y, 2).repeat(1, 1, 2)], 1).mean(-1))
        return logits


class ToyMobile(nn.Module):
    """An inverted residual with ReLU6, as in MobileNetV2. Input `[B, 3, 8, 8]`, 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True),
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True),
            nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 5]`."""
        x = self.stem(x)
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x + self.block(x), 1).flatten(1))
        return logits


class ToyTransformer(nn.Module):
    """An encoder layer with packed projections, dropout and GELU. Input `[B, 6, 12]`, 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, 0.1, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 5]`."""
        logits: Tensor = self.head(self.encoder(self.embed(x)).mean(1))
        return logits


class ToyTable(nn.Module):
    """Two embeddings beside numbers, as for tabular data. Input `[B, 2]` int64 below 12 and `[B, 4]`, 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(12, 6), nn.Embedding(12, 6)
        self.numbers = nn.Linear(4, 8)
        self.hidden = nn.Linear(20, 16, bias=False)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Logits `[B, 5]`."""
        x = torch.cat([self.first(tokens[:, 0]), self.second(tokens[:, 1]), F.relu(self.numbers(x))], 1)
        logits: Tensor = self.head(F.relu(self.norm(self.hidden(x))))
        return logits


class ToyLstm(nn.Module):
    """A bidirectional LSTM. Input `[B, 5, 6]`, 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 5]`."""
        logits: Tensor = self.head(self.lstm(x)[0].mean(1))
        return logits


class ToyGru(nn.Module):
    """A GRU of two layers; its last step gives the logits. Input `[B, 5, 6]`, 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 5]`."""
        logits: Tensor = self.head(self.gru(x)[0][:, -1])
        return logits


def _normal(*shape: int) -> Callable[[int, Generator], tuple[Tensor, ...]]:
    return lambda count, generator: (torch.randn(count, *shape, generator=generator),)


def _table(count: int, generator: Generator) -> tuple[Tensor, ...]:
    return torch.randint(12, (count, 2), generator=generator), torch.randn(count, 4, generator=generator)


CONV_NET = Toy("conv net", ToyNet, _normal(1, 8, 8), 10)
TOYS: tuple[Toy, ...] = (
    CONV_NET,
    Toy("conv 1d", ToyConv1d, _normal(4, 16), 5),
    Toy("inverted residual", ToyMobile, _normal(3, 8, 8), 5),
    Toy("transformer", ToyTransformer, _normal(6, 12), 5),
    Toy("table with embeddings", ToyTable, _table, 5),
    Toy("lstm", ToyLstm, _normal(5, 6), 5),
    Toy("gru", ToyGru, _normal(5, 6), 5),
)
"""One toy for each family of operators."""
