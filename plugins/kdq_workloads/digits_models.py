"""Teacher and student of the workload `digits`: two small residual networks of one family.

They use only layers that export and quantize: convolution, batch norm, relu, tensor addition, global average pool and
linear.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition" (basic blocks, relu after the addition).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Residual(nn.Module):
    """`relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))`, `[B, I, H, W] -> [B, O, H/stride, W/stride]`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for `x`."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """Stem, one residual block for each entry of `widths`, global average pool, linear.

    Args:
        stem: channels of the first convolution, at the full 8x8.
        widths: channels of each block; the first keeps the resolution if it keeps the channels, all others halve it.
        classes: number of logits.
    """

    def __init__(self, stem: int, widths: tuple[int, ...], classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, stem, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        pairs = zip((stem, *widths), widths, strict=False)
        self.blocks = nn.Sequential(*(Residual(i, o, stride=1 if i == o else 2) for i, o in pairs))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, 1, 8, 8]` to logits `[B, classes]`."""
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return cast("Tensor", self.head(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def teacher(width: int) -> DigitsResNet:
    """Make a net of three blocks of `width`, `2 width` and `4 width` channels."""
    return DigitsResNet(width, (width, 2 * width, 4 * width))


def student(width: int) -> DigitsResNet:
    """Make a net of a narrow stem and two blocks of `width` and `2 width` channels, each halving the resolution."""
    return DigitsResNet(width // 2, (width, 2 * width))
