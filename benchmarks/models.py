"""The models of the quantization benchmark, and their random inputs. All give `[B, 10]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Benchmark:
    """A model to measure.

    Attributes:
        name: name on the result page.
        model: makes a new model.
        inputs: random inputs for a number of samples.
        options: options of the target `onnxruntime-cpu`; a model with options is not measured in other targets.
    """

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    options: dict[str, str] = field(default_factory=dict)


class Block(nn.Module):
    """Two 3x3 convs and a shortcut, with a 1x1 conv where sizes change."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, made, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(made)
        self.conv2 = nn.Conv2d(made, made, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(made)
        self.shortcut: nn.Module = nn.Identity()
        if given != made or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output; both are `[B, C, H, W]`."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """The residual net for 32x32 images of He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2."""

    def __init__(self, blocks: int, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        given = widths[0]
        for index, width in enumerate(widths):
            for block in range(blocks):
                layers.append(Block(given, width, 2 if index and not block else 1))
                given = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(given, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 10]` of images `[B, 3, 32, 32]`."""
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Transformer(nn.Module):
    """Two pre-norm encoder layers of width 128 over 32 tokens, mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(1000, 128)
        self.positions = nn.Parameter(torch.randn(1, 32, 128) * 0.02)
        layer = nn.TransformerEncoderLayer(128, 4, 512, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(128)
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[B, 10]` of tokens `[B, 32]`."""
        logits: Tensor = self.head(self.norm(self.encoder(self.tokens(tokens) + self.positions)).mean(1))
        return logits


class Table(nn.Module):
    """Eight categories and sixteen numbers, three hidden layers of 512."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(1000, 32) for _ in range(8))
        self.numbers = nn.Linear(16, 64)
        self.hidden = nn.Sequential(
            nn.Linear(8 * 32 + 64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU()
        )
        self.head = nn.Linear(512, 10)

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """Return logits `[B, 10]` of categories `[B, 8]` and numbers `[B, 16]`."""
        parts = [table(categories[:, index]) for index, table in enumerate(self.tables)]
        logits: Tensor = self.head(self.hidden(torch.cat([*parts, F.relu(self.numbers(numbers))], 1)))
        return logits


class Sequence(nn.Module):
    """An LSTM or GRU of 256 units over 64 steps of 64 numbers, read at the last step."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.recurrent = layer(64, 256, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 10]` of sequences `[B, 64, 64]`."""
        logits: Tensor = self.head(self.recurrent(x)[0][:, -1])
        return logits


def _images(count: int) -> tuple[Tensor, ...]:
    return (torch.randn(count, 3, 32, 32),)


def _tokens(count: int) -> tuple[Tensor, ...]:
    return (torch.randint(1000, (count, 32)),)


def _rows(count: int) -> tuple[Tensor, ...]:
    return torch.randint(1000, (count, 8)), torch.randn(count, 16)


def _sequences(count: int) -> tuple[Tensor, ...]:
    return (torch.randn(count, 64, 64),)


BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark("ResNet-8", lambda: ResNet(1), _images),
    Benchmark("ResNet-20", lambda: ResNet(3), _images),
    Benchmark("conv net, 4.3M", lambda: ResNet(3, (64, 128, 256)), _images),
    Benchmark("transformer", Transformer, _tokens),
    Benchmark("MLP with embeddings", Table, _rows),
    Benchmark("LSTM", lambda: Sequence(nn.LSTM), _sequences),
    Benchmark("GRU", lambda: Sequence(nn.GRU), _sequences),
    Benchmark("GRU, weight-only", lambda: Sequence(nn.GRU), _sequences, {"gru": "weight-only"}),
)
