"""Convolutional networks of the first decade: torchvision's and timm's families on a few channels."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def block(given, made, kernel=3, stride=1, activation=nn.ReLU, **more):
    """Convolution, batch norm and activation, padded to keep the size."""
    conv = nn.Conv2d(given, made, kernel, stride, kernel // 2, bias=False, **more)
    return nn.Sequential(conv, nn.BatchNorm2d(made), activation())


class Residual(nn.Module):
    """A branch that is added to its input, or to a projection of it."""

    def __init__(self, branch, shortcut=None, activation=None):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()
        self.activation = activation or nn.ReLU()

    def forward(self, x):
        return self.activation(self.branch(x) + self.shortcut(x))


def classifier(*body, channels=16, classes=5):
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def basic(given, made, stride=1):
    shortcut = None
    if stride > 1 or given != made:
        shortcut = nn.Sequential(nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made))
    conv = nn.Conv2d(made, made, 3, 1, 1, bias=False)
    return Residual(nn.Sequential(block(given, made, 3, stride), conv, nn.BatchNorm2d(made)), shortcut)


def bottleneck(given, width, groups=1, middle=None):
    last = nn.Sequential(nn.Conv2d(width, given, 1, bias=False), nn.BatchNorm2d(given))
    parts = [block(given, width, 1), block(width, width, groups=groups), *([middle] if middle else []), last]
    return Residual(nn.Sequential(*parts))


class SqueezeExcite(nn.Module):
    """Scales channels by a gate that sees all positions."""

    def __init__(self, channels, gate=nn.Sigmoid, activation=nn.ReLU):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.gate, self.activation = gate(), activation()

    def forward(self, x):
        return x * self.gate(self.up(self.activation(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Dense(nn.Module):
    """Batch norm and relu before each convolution; every layer reads all earlier ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 4, 3, 1, 1, bias=False)) for n in (8, 12, 16)
        )
        self.turn = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2))
        self.norm, self.head = nn.BatchNorm2d(10), nn.Linear(10, 5)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(F.relu(self.norm(self.turn(x))).mean((2, 3)))


class Fire(nn.Module):
    """SqueezeNet's: a narrow layer feeds two wide ones."""

    def __init__(self, given):
        super().__init__()
        self.squeeze = nn.Conv2d(given, 4, 1)
        self.one, self.three = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class Inception(nn.Module):
    """Branches of 1x1, 1x7 and 7x1, 3x3, and average pooling that counts its padding."""

    def __init__(self):
        super().__init__()
        self.stem = block(3, 8)
        self.one = block(8, 4, 1)
        self.seven = nn.Sequential(
            nn.Conv2d(8, 4, (1, 7), padding=(0, 3)), nn.ReLU(), nn.Conv2d(4, 4, (7, 1), padding=(3, 0)), nn.ReLU()
        )
        self.three = nn.Sequential(block(8, 4, 1), block(4, 4))
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), block(8, 4, 1))
        self.down = nn.ModuleList([block(16, 8, 3, 2), nn.MaxPool2d(3, 2, 1)])
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.one(x), self.seven(x), self.three(x), self.pooled(x)], 1)
        x = torch.cat([layer(x) for layer in self.down], 1)
        return self.head(F.dropout(x.mean((2, 3)), 0.2, self.training))


class PreActivated(nn.Module):
    """Batch norm and relu in front of the convolutions, whose sum nothing normalises."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, 1, 1, bias=False) for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.convs[0](F.relu(self.norms[0](x)))
        x = x + self.convs[1](F.relu(self.norms[1](y)))
        return self.head(F.relu(self.norms[2](x)).mean((2, 3)))


class StandardConv(nn.Conv2d):
    """A convolution whose weight is standardised at each call, as in BiT and NFNet."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Standardised(nn.Module):
    """Group norm and standardised weights."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = StandardConv(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.next, self.after = StandardConv(16, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(x + self.after(self.next(x))).mean((2, 3)))


class BlurPool(nn.Module):
    """Smooths with a constant filter before it leaves out positions."""

    def __init__(self, channels):
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filter", (line[:, None] * line / 16).expand(channels, 1, 3, 3).clone())

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filter, stride=2, groups=x.shape[1])


class SplitAttention(nn.Module):
    """ResNeSt's: a softmax over two groups of channels weighs them."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, 2 * channels, 1)

    def forward(self, x):
        count, channels, height, width = x.shape
        parts = F.relu(self.norm(self.conv(x))).view(count, 2, channels, height, width)
        gap = parts.sum(1).mean((2, 3), keepdim=True)
        weights = self.up(F.relu(self.down(gap))).view(count, 2, channels, 1, 1).softmax(1)
        return (parts * weights).sum(1)


class AttentionModule(nn.Module):
    """CBAM: gates by channel from mean and maximum, then by position."""

    def __init__(self, channels):
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1))
        self.where = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x):
        x = x * (self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))).sigmoid()
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.where(both).sigmoid()


class RepVgg(nn.Module):
    """Three branches of one convolution, with a batch norm of the input itself."""

    def __init__(self):
        super().__init__()
        self.stem = block(3, 16)
        self.three = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.one = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.same, self.head = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(self.three(x) + self.one(x) + self.same(x)).mean((2, 3)))


def vgg():
    features = [block(3, 8), nn.MaxPool2d(2), block(8, 16), nn.MaxPool2d(2)]
    tail = [nn.Linear(16 * 4, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *tail)


def lenet():
    features = [nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.AvgPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 5))


def alexnet():
    features = [nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(3), nn.MaxPool2d(3, 2)]
    return nn.Sequential(*features, nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))


def squeezenet():
    body = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(8), Fire(16)]
    return nn.Sequential(*body, nn.Dropout(), nn.Conv2d(16, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


IMAGE = [(3, 16, 16)]
MODELS = {
    "LeNet": (lenet, [(1, 16, 16)]),
    "AlexNet": (alexnet, IMAGE),
    "VGG": (vgg, IMAGE),
    "ResNet, basic blocks": (lambda: classifier(block(3, 8), basic(8, 8), basic(8, 16, 2)), IMAGE),
    "ResNet, bottlenecks": (lambda: classifier(block(3, 16, 7, 2), nn.MaxPool2d(3, 2, 1), bottleneck(16, 8)), IMAGE),
    "ResNet, pre-activated": (PreActivated, IMAGE),
    "ResNeXt": (lambda: classifier(block(3, 16), bottleneck(16, 8, groups=4)), IMAGE),
    "SE-ResNet": (lambda: classifier(block(3, 16), bottleneck(16, 8, middle=SqueezeExcite(8))), IMAGE),
    "RegNet": (lambda: classifier(block(3, 16, 3, 2), bottleneck(16, 16, 2, SqueezeExcite(16))), IMAGE),
    "ResNeSt": (lambda: classifier(block(3, 16), Residual(SplitAttention(16))), IMAGE),
    "ResNet with blur pooling": (lambda: classifier(block(3, 16), BlurPool(16), block(16, 16)), IMAGE),
    "ResNet with CBAM": (lambda: classifier(block(3, 16), Residual(AttentionModule(16))), IMAGE),
    "BiT (group norm)": (Standardised, IMAGE),
    "DenseNet": (Dense, IMAGE),
    "SqueezeNet": (squeezenet, [(3, 15, 15)]),
    "Inception": (Inception, IMAGE),
    "RepVGG": (RepVgg, IMAGE),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_ships_as_it_was_simulated(name, ships):
    ships(name, *MODELS[name])
