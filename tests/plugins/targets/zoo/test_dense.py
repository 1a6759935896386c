"""Networks that answer for each position, or make images: skips, transposed and dilated layers, three axes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def block(given, made, kernel=3, stride=1, dilation=1):
    conv = nn.Conv2d(given, made, kernel, stride, dilation * (kernel // 2), dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(made), nn.ReLU())


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip that is concatenated."""

    def __init__(self):
        super().__init__()
        self.first, self.deep = block(3, 8), block(8, 16)
        self.up, self.join, self.out = nn.ConvTranspose2d(16, 8, 2, 2), block(16, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.first(x)
        y = self.up(self.deep(F.max_pool2d(x, 2)))
        return self.out(self.join(torch.cat([x, y], 1)))


class Pyramid(nn.Module):
    """FPN: 1x1 layers meet what is enlarged from below; two maps are the outputs."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = block(3, 8, 3, 2), block(8, 16, 3, 2)
        self.l1, self.l2 = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)
        self.p1, self.p2 = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        c1 = self.c1(x)
        top = self.l2(self.c2(c1))
        low = self.l1(c1) + F.interpolate(top, scale_factor=2, mode="nearest")
        return self.p1(low), self.p2(top)


class DeepLab(nn.Module):
    """Layers of several dilations beside global pooling, enlarged bilinearly."""

    def __init__(self):
        super().__init__()
        self.stem = block(3, 8, 3, 2)
        self.ways = nn.ModuleList([block(8, 4, 1), block(8, 4, 3, 1, 2), block(8, 4, 3, 1, 3)])
        self.image, self.join, self.out = nn.Conv2d(8, 4, 1), block(16, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        y = self.stem(x)
        image = F.relu(self.image(F.adaptive_avg_pool2d(y, 1)))
        image = F.interpolate(image, size=y.shape[-2:], mode="bilinear", align_corners=False)
        y = self.out(self.join(torch.cat([way(y) for way in self.ways] + [image], 1)))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class HighResolution(nn.Module):
    """HRNet: two sizes side by side that exchange what they know."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = block(3, 8), block(8, 12, 3, 2)
        self.high, self.low = block(8, 8), block(12, 12)
        self.to_low, self.to_high = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.stem(x)
        high, low = self.high(x), self.low(self.down(x))
        both = (
            F.relu(high + F.interpolate(self.to_high(low), scale_factor=2.0, mode="nearest")),
            F.relu(low + self.to_low(high)),
        )
        return self.head(torch.cat([part.mean((2, 3)) for part in both], 1))


class Yolo(nn.Module):
    """Leaky relu, pooling of several sizes side by side, and cells as rows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.1))
        self.join = nn.Sequential(nn.Conv2d(24, 8, 1), nn.LeakyReLU(0.1))
        self.out = nn.Conv2d(8, 2 * 7, 1)

    def forward(self, x):
        x = self.stem(x)
        x = self.join(torch.cat([x, F.max_pool2d(x, 5, 1, 2), F.max_pool2d(x, 3, 1, 1)], 1))
        return self.out(x).view(x.shape[0], 2, 7, -1).transpose(2, 3).flatten(1, 2)


class Detector(nn.Module):
    """SSD: boxes and classes of two maps."""

    def __init__(self):
        super().__init__()
        self.first, self.second = block(3, 8, 3, 2), block(8, 8, 3, 2)
        self.boxes = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=1) for _ in range(2))
        self.classes = nn.ModuleList(nn.Conv2d(8, 3, 3, padding=1) for _ in range(2))

    def forward(self, x):
        maps = [self.first(x)]
        maps.append(self.second(maps[0]))
        rows = [
            [head(one).permute(0, 2, 3, 1).reshape(x.shape[0], -1, size) for head, one in zip(heads, maps)]
            for heads, size in ((self.classes, 3), (self.boxes, 4))
        ]
        return torch.cat(rows[0], 1), torch.cat(rows[1], 1)


class Cubes(nn.Module):
    """R(2+1)D: three axes, space and time apart."""

    def __init__(self):
        super().__init__()
        self.space = nn.Conv3d(2, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.time = nn.Conv3d(8, 8, (3, 1, 1), 1, (1, 0, 0), bias=False)
        self.norms, self.head = nn.ModuleList(nn.BatchNorm3d(8) for _ in range(2)), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norms[0](self.space(x)))
        x = F.relu(x + self.norms[1](self.time(x)))
        return self.head(F.adaptive_avg_pool3d(x, 1).flatten(1))


class Autoencoder(nn.Module):
    """Down to a few numbers and back to an image between 0 and 1."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ELU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ELU(), nn.Flatten())
        self.inner, self.outer = nn.Linear(128, 6), nn.Linear(6, 128)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1),
            nn.ELU(),
            nn.ConvTranspose2d(8, 1, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return self.up(F.elu(self.outer(self.inner(self.down(x)))).unflatten(1, (8, 4, 4)))


def generator():
    """DCGAN's: from noise to an image, in transposed convolutions."""
    start = [nn.Linear(8, 8 * 16), nn.Unflatten(1, (8, 4, 4)), nn.BatchNorm2d(8), nn.ReLU()]
    middle = [nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*start, *middle, nn.Conv2d(8, 3, 3, padding=1), nn.Tanh())


def enlarger():
    """ESPCN: enlarges an image by moving channels to positions."""
    return nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2))


class Stylized(nn.Module):
    """Fast style transfer: reflected padding, instance norm, enlarging before a convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1, padding_mode="reflect")
        self.norm, self.after = nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(8, affine=True)
        self.next, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = x + self.after(self.next(x))
        return self.last(F.interpolate(x, scale_factor=2, mode="nearest"))


IMAGE = [(3, 16, 16)]
MODELS = {
    "U-Net": (UNet, IMAGE),
    "FPN, two outputs": (Pyramid, IMAGE),
    "DeepLab": (DeepLab, IMAGE),
    "HRNet": (HighResolution, IMAGE),
    "YOLO": (Yolo, IMAGE),
    "SSD, two outputs": (Detector, IMAGE),
    "R(2+1)D": (Cubes, [(2, 4, 8, 8)]),
    "Autoencoder": (Autoencoder, [(1, 16, 16)]),
    "DCGAN generator": (generator, [(8,)]),
    "ESPCN": (enlarger, [(1, 8, 8)]),
    "Style transfer": (Stylized, IMAGE),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_ships_as_it_was_simulated(name, ships):
    ships(name, *MODELS[name])
