"""Nets for images."""

from __future__ import annotations

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


class Separable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution, `[B, C, H, W] -> [B, out, H / stride, W / stride]`."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, out, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return F.relu(self.norm2(self.pointwise(F.relu(self.norm1(self.depthwise(x))))))


class DepthwiseNet(nn.Module):
    """A small MobileNet: a 3x3 convolution, six separable blocks and a linear head, `[B, 1, H, W] -> [B, 10]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        shape = ((1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 4, 1), (4, 4, 1))
        self.blocks = nn.Sequential(*(Separable(a * width, b * width, stride) for a, b, stride in shape))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 10]`."""
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
