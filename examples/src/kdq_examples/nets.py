"""The nets of the benchmark workloads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, `[B, C, H, W] -> [B, out, H / stride, W / stride]`."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        same = stride == 1 and channels == out
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of residual blocks and a linear head, `[B, 1, H, W] -> [B, 10]`."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        stages, channels = [], width
        for stage in range(3):
            out = width * 2**stage
            for number in range(blocks):
                stages.append(Block(channels, out, 2 if stage and not number else 1))
                channels = out
        self.blocks, self.head = nn.Sequential(*stages), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 10]`."""
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def resnet(width: int, blocks: int) -> nn.Module:
    """Make a ResNet of 6 * blocks + 2 layers."""
    return ResNet(width, blocks)


class TextTransformer(nn.Module):
    """Encoder over word numbers `[B, L]` (0 is padding), mean over the words, linear head: `[B, classes]`."""

    def __init__(self, words: int, classes: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, max(1, width // 32), 2 * width, 0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)
        self.register_buffer("places_of", torch.arange(length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[B, classes]`."""
        x = self.encoder(self.words(tokens) + self.places(self.places_of))
        kept = (tokens != 0).to(x.dtype).unsqueeze(-1)
        logits: Tensor = self.head((x * kept).sum(1) / kept.sum(1))
        return logits


class BagOfWords(nn.Module):
    """Mean of word vectors and two linear layers, `[B, L] -> [B, classes]`."""

    def __init__(self, words: int, classes: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.hidden, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[B, classes]`."""
        logits: Tensor = self.head(F.relu(self.hidden(self.words(tokens).mean(1))))
        return logits
