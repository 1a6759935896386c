"""Networks for small devices, and those that came after: depthwise layers, gates, other activations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def block(given, made, kernel=3, stride=1, groups=1, activation=nn.ReLU6):
    conv = nn.Conv2d(given, made, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(made), activation())


class Gate(nn.Module):
    """Squeeze and excite, with linear layers as in MobileNet v3 or with convolutions."""

    def __init__(self, channels, gate, activation):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.gate, self.activation = gate(), activation()

    def forward(self, x):
        return self.gate(self.up(self.activation(self.down(F.adaptive_avg_pool2d(x, 1))))) * x


class Inverted(nn.Module):
    """Wide depthwise layer between two narrow ones; the narrow ends are added."""

    def __init__(self, given, made, stride=1, activation=nn.ReLU6, gate=None):
        super().__init__()
        wide, self.adds = 2 * given, stride == 1 and given == made
        parts = [block(given, wide, 1, activation=activation), block(wide, wide, 3, stride, wide, activation)]
        parts += [gate(wide)] if gate else []
        self.body = nn.Sequential(*parts, nn.Conv2d(wide, made, 1, bias=False), nn.BatchNorm2d(made))

    def forward(self, x):
        return x + self.body(x) if self.adds else self.body(x)


def classifier(*body, channels=16, classes=5):
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes))


def mobile_v3():
    gate = lambda n: Gate(n, nn.Hardsigmoid, nn.ReLU)  # noqa: E731
    stem = block(3, 8, 3, 2, activation=nn.Hardswish)
    blocks = [Inverted(8, 8, 1, nn.ReLU, gate), Inverted(8, 8, 1, nn.Hardswish, gate)]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16), nn.Hardswish(), nn.Linear(16, 5)]
    return nn.Sequential(stem, *blocks, block(8, 16, 1, activation=nn.Hardswish), *last)


def efficient():
    gate = lambda n: Gate(n, nn.Sigmoid, nn.SiLU)  # noqa: E731
    blocks = [Inverted(8, 8, 1, nn.SiLU, gate), Inverted(8, 8, 2, nn.SiLU, gate)]
    return classifier(block(3, 8, 3, 2, activation=nn.SiLU), *blocks, block(8, 16, 1, activation=nn.SiLU))


class Fused(nn.Module):
    """EfficientNet v2's block: one wide convolution, then a narrow one."""

    def __init__(self):
        super().__init__()
        self.wide = block(8, 16, 3, activation=nn.SiLU)
        self.narrow = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x):
        return x + self.narrow(self.wide(x))


class ShuffleOne(nn.Module):
    """Grouped 1x1 layers; channels change groups between them."""

    def __init__(self):
        super().__init__()
        self.first = block(16, 16, 1, groups=2, activation=nn.ReLU)
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16))
        self.last = nn.Sequential(nn.Conv2d(16, 16, 1, groups=2, bias=False), nn.BatchNorm2d(16))

    def forward(self, x):
        y = F.channel_shuffle(self.first(x), 2)
        return F.relu(x + self.last(self.deep(y)))


class ShuffleTwo(nn.Module):
    """Half of the channels pass; then both halves are mixed."""

    def __init__(self):
        super().__init__()
        deep = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8))
        self.body = nn.Sequential(block(8, 8, 1, activation=nn.ReLU), deep, block(8, 8, 1, activation=nn.ReLU))

    def forward(self, x):
        one, two = x.chunk(2, 1)
        x = torch.cat([one, self.body(two)], 1)
        count, channels, height, width = x.shape
        return x.view(count, 2, channels // 2, height, width).transpose(1, 2).flatten(1, 2)


class Ghost(nn.Module):
    """Half of the channels are made by a cheap depthwise layer from the other half."""

    def __init__(self, given, made):
        super().__init__()
        self.main = block(given, made // 2, 1, activation=nn.ReLU)
        self.cheap = block(made // 2, made // 2, 3, 1, made // 2, nn.ReLU)

    def forward(self, x):
        x = self.main(x)
        return torch.cat([x, self.cheap(x)], 1)


class Mixed(nn.Module):
    """MixNet: kernels of several sizes, each on its own channels."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(n, n, k, 1, k // 2, groups=n) for n, k in ((6, 3), (6, 5), (4, 7)))
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        parts = torch.split(x, [6, 6, 4], 1)
        return F.hardswish(self.norm(torch.cat([conv(part) for conv, part in zip(self.convs, parts)], 1)))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of `[B, C, H, W]`."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Depthwise 7x7, layer norm on channels last, GELU and a layer scale."""

    def __init__(self, channels, response=False):
        super().__init__()
        self.deep, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.3))
        self.gains = nn.Parameter(torch.randn(2, 1, 1, 1, 2 * channels)) if response else None

    def forward(self, x):
        y = F.gelu(self.up(self.norm(self.deep(x).permute(0, 2, 3, 1))))
        if self.gains is not None:  # the global response normalisation of version 2
            size = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True)
            y = self.gains[0] * (y * size / (size.mean(-1, keepdim=True) + 1e-6)) + self.gains[1] + y
        return x + (self.scale * self.down(y)).permute(0, 3, 1, 2)


class Pooling(nn.Module):
    """PoolFormer's block: what attention does elsewhere is done by average pooling."""

    def __init__(self, channels):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels) for _ in range(2))
        self.up, self.down = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 1)
        self.scales = nn.Parameter(torch.full((2, channels, 1, 1), 0.5))

    def forward(self, x):
        y = self.norms[0](x)
        x = x + self.scales[0] * (F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y)
        return x + self.scales[1] * self.down(F.gelu(self.up(self.norms[1](x))))


class Mixing(nn.Module):
    """MLP-Mixer's block: layers over positions, then over channels."""

    def __init__(self, places, channels):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.across = nn.Sequential(nn.Linear(places, 8), nn.GELU(), nn.Linear(8, places))
        self.within = nn.Sequential(nn.Linear(channels, 24), nn.GELU(), nn.Linear(24, channels))

    def forward(self, x):
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norms[1](x))


class Gating(nn.Module):
    """gMLP's block: half of the channels, mixed over positions, gate the other half."""

    def __init__(self, places, channels):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(channels), nn.Linear(channels, 24), nn.Linear(12, channels)
        self.inner, self.mix = nn.LayerNorm(12), nn.Conv1d(places, places, 1)

    def forward(self, x):
        kept, gate = F.gelu(self.up(self.norm(x))).chunk(2, dim=-1)
        return x + self.down(kept * self.mix(self.inner(gate)))


class Tokens(nn.Module):
    """Cuts an image into patches and mixes them."""

    def __init__(self, kind):
        super().__init__()
        self.patch, self.body = nn.Conv2d(3, 16, 4, 4), nn.Sequential(*(kind(16, 16) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.norm(self.body(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


class Added(nn.Sequential):
    """Adds its input to what its layers give."""

    def forward(self, x):
        return x + super().forward(x)


def conv_mixer():
    deep = Added(nn.Conv2d(16, 16, 5, 1, 2, groups=16), nn.GELU(), nn.BatchNorm2d(16))
    after = [nn.Conv2d(16, 16, 1), nn.GELU(), nn.BatchNorm2d(16)]
    return classifier(nn.Conv2d(3, 16, 2, 2), nn.GELU(), nn.BatchNorm2d(16), deep, *after)


IMAGE = [(3, 16, 16)]
MODELS = {
    "MobileNet v2": (lambda: classifier(block(3, 8, 3, 2), Inverted(8, 8), Inverted(8, 16, 2)), IMAGE),
    "MobileNet v3": (mobile_v3, IMAGE),
    "EfficientNet": (efficient, IMAGE),
    "EfficientNet v2": (lambda: classifier(block(3, 8, 3, 2, 1, nn.SiLU), Fused(), block(8, 16, 1)), IMAGE),
    "ShuffleNet": (lambda: classifier(block(3, 16, 3, 2), ShuffleOne()), IMAGE),
    "ShuffleNet v2": (lambda: classifier(block(3, 16, 3, 2), ShuffleTwo(), ShuffleTwo()), IMAGE),
    "GhostNet": (lambda: classifier(Ghost(3, 8), nn.MaxPool2d(2), Ghost(8, 16)), IMAGE),
    "MixNet": (lambda: classifier(block(3, 16, 3, 2), Mixed(), block(16, 16, 1)), IMAGE),
    "ConvNeXt": (lambda: classifier(nn.Conv2d(3, 16, 4, 4), ChannelNorm(16), ConvNext(16), ChannelNorm(16)), IMAGE),
    "ConvNeXt v2": (lambda: classifier(nn.Conv2d(3, 16, 4, 4), ConvNext(16, response=True)), IMAGE),
    "PoolFormer": (lambda: classifier(nn.Conv2d(3, 16, 3, 2, 1), Pooling(16), Pooling(16)), IMAGE),
    "MLP-Mixer": (lambda: Tokens(Mixing), IMAGE),
    "gMLP": (lambda: Tokens(Gating), IMAGE),
    "ConvMixer": (conv_mixer, IMAGE),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_ships_as_it_was_simulated(name, ships):
    ships(name, *MODELS[name])
