"""Vision transformers: patches, windows, tokens of their own, attention over channels, convolutions in between."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention with one product for query, key and value."""

    def __init__(self, channels, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        count, places, channels = x.shape
        q, k, v = self.qkv(x).reshape(count, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(count, places, channels))


class Block(nn.Module):
    """Attention and two layers, each behind a norm and added to its input."""

    def __init__(self, channels, attention=Attention):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.attention = attention(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class Vit(nn.Module):
    """A class token and learned positions; DeiT has a second token and head."""

    def __init__(self, tokens=1, attention=Attention):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, tokens, 16) * 0.5)
        self.positions = nn.Parameter(torch.randn(1, 16 + tokens, 16) * 0.5)
        self.blocks, self.norm = nn.Sequential(Block(16, attention), Block(16, attention)), nn.LayerNorm(16)
        self.heads = nn.ModuleList(nn.Linear(16, 5) for _ in range(tokens))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = self.norm(self.blocks(x))
        made = [head(x[:, index]) for index, head in enumerate(self.heads)]
        return made[0] if len(made) == 1 else (made[0] + made[1]) / 2


class Explicit(nn.Module):
    """Attention spelled out, with normalised queries and keys and a learned temperature, as in Swin v2."""

    def __init__(self, channels, heads=2):
        super().__init__()
        self.heads, self.out = heads, nn.Linear(channels, channels)
        self.q, self.k, self.v = (nn.Linear(channels, channels, bias=bias) for bias in (True, False, True))
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), 2.0))

    def forward(self, x):
        count, places, channels = x.shape
        q, k, v = (part(x).view(count, places, self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        weights = (scores * self.temperature.clamp(max=4.0).exp()).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(count, places, channels))


class CrossCovariance(nn.Module):
    """XCiT's: attention between channels."""

    def __init__(self, channels, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x):
        count, places, channels = x.shape
        q, k, v = self.qkv(x).reshape(count, places, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature).softmax(-1)
        return self.out((weights @ v).permute(0, 3, 1, 2).reshape(count, places, channels))


class Windows(nn.Module):
    """Swin's: attention within shifted windows, with a table of relative positions and a mask."""

    def __init__(self, channels, size=8, window=4, shift=2, heads=2):
        super().__init__()
        self.window, self.shift, self.heads = window, shift, heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.3)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = at[:, :, None] - at[:, None] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1], persistent=False)
        part = (torch.arange(size) >= size - window).long() + (torch.arange(size) >= size - shift).long()
        part = self._cut((part[:, None] * 3 + part)[None, :, :, None]).squeeze(-1)
        mask = (part[:, :, None] != part[:, None]).float() * -100
        self.register_buffer("mask", mask[:, None], persistent=False)

    def _cut(self, x):
        count, height, width, channels = x.shape
        w = self.window
        x = x.view(count, height // w, w, width // w, w, channels)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, channels)

    def forward(self, x):
        count, height, width, channels = x.shape
        x = self._cut(torch.roll(x, (-self.shift, -self.shift), (1, 2)))
        q, k, v = self.qkv(x).view(-1, self.window**2, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * (channels // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(*self.index.shape, self.heads).permute(2, 0, 1)
        scores = scores + bias
        many = self.mask.shape[0]
        scores = scores.view(-1, many, *scores.shape[1:]) + self.mask
        weights = scores.view(-1, *scores.shape[2:]).softmax(-1)
        x = self.out((weights @ v).transpose(1, 2).reshape(-1, self.window**2, channels))
        w = self.window
        x = x.view(count, height // w, width // w, w, w, channels).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(x.reshape(count, height, width, channels), (self.shift, self.shift), (1, 2))


class Swin(nn.Module):
    """Shifted windows and the merging of patches."""

    def __init__(self):
        super().__init__()
        self.patch, self.first = nn.Conv2d(3, 16, 2, 2), nn.LayerNorm(16)
        self.block = Block(16, Windows)
        self.norm, self.merge = nn.LayerNorm(64), nn.Linear(64, 24, bias=False)
        self.last, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x):
        x = self.block(self.first(self.patch(x).permute(0, 2, 3, 1)))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.last(self.merge(self.norm(x))).mean((1, 2)))


class CoAtNet(nn.Module):
    """Depthwise convolutions first, then attention with a bias for each pair of positions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.GELU())
        self.deep = nn.Sequential(
            nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.GELU(),
            nn.Conv2d(32, 32, 3, 2, 1, groups=32, bias=False), nn.BatchNorm2d(32), nn.GELU(), nn.Conv2d(32, 16, 1),
        )  # fmt: skip
        self.block, self.bias = Block(16), nn.Parameter(torch.randn(1, 16, 16) * 0.1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.max_pool2d(x, 2) + self.deep(x)
        return self.head(self.block(x.flatten(2).transpose(1, 2) + self.bias).mean(1))


class Reduced(nn.Module):
    """PVT's: keys and values are read from a smaller image."""

    def __init__(self, channels):
        super().__init__()
        self.q, self.kv, self.out = (nn.Linear(channels, n * channels) for n in (1, 2, 1))
        self.reduce, self.norm = nn.Conv2d(channels, channels, 2, 2), nn.LayerNorm(channels)

    def forward(self, x):
        count, places, channels = x.shape
        side = int(math.sqrt(places))
        image = x.transpose(1, 2).reshape(count, channels, side, side)
        k, v = self.kv(self.norm(self.reduce(image).flatten(2).transpose(1, 2))).chunk(2, -1)
        return self.out(F.scaled_dot_product_attention(self.q(x), k, v))


class Pyramid(nn.Module):
    """Positions by a depthwise convolution, attention to a smaller image."""

    def __init__(self):
        super().__init__()
        self.patch, self.where = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.block, self.norm, self.head = Block(16, Reduced), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patch(x)
        x = (x + self.where(x)).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.block(x)).mean(1))


class MobileVit(nn.Module):
    """Unfolds an image into patches, attends between equal places of the patches, and folds it again."""

    def __init__(self):
        super().__init__()
        self.local = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU())
        self.block = Block(16)
        self.join = nn.Sequential(nn.Conv2d(32, 16, 3, 1, 1), nn.SiLU())
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.local(x)
        count, channels, height, width = x.shape
        y = x.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 2, 4, 1)
        y = self.block(y.reshape(count * 4, height * width // 4, channels))
        y = y.view(count, 2, 2, height // 2, width // 2, channels).permute(0, 5, 3, 1, 4, 2)
        x = self.join(torch.cat([x, y.reshape(count, channels, height, width)], 1))
        return self.head(x.mean((2, 3)))


class Levit(nn.Module):
    """Batch norm behind each linear layer, hardswish, and an attention bias."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16), nn.Hardswish())
        self.qkv, self.qkv_norm = nn.Linear(16, 48, bias=False), nn.BatchNorm1d(48)
        self.out, self.out_norm = nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16)
        self.bias = nn.Parameter(torch.randn(2, 16, 16) * 0.2)
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        count, places, channels = x.shape
        y = self.qkv_norm(self.qkv(x).flatten(0, 1)).view(count, places, 2, 24)
        q, k, v = y.transpose(1, 2).split([8, 8, 8], dim=-1)
        weights = (q @ k.transpose(-2, -1) * 8**-0.5 + self.bias).softmax(-1)
        y = F.hardswish((weights @ v).transpose(1, 2).reshape(count * places, channels))
        x = x + self.out_norm(self.out(y)).view(count, places, channels)
        return self.head(self.norm(x.mean(1)))


class ClassAttention(nn.Module):
    """CaiT's last layers: only the class token asks; a pooled map of what it attends to gives the answer."""

    def __init__(self):
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.scale, self.norm = nn.Parameter(torch.full((16,), 0.4)), nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        token = self.token.expand(x.shape[0], -1, -1)
        given = self.norm(torch.cat([token, x], 1))
        made, _ = self.attention(given[:, :1], given, given, need_weights=False)
        return self.head((token + self.scale * made).squeeze(1))


IMAGE = [(3, 16, 16)]
MODELS = {
    "ViT": (Vit, IMAGE),
    "DeiT, two tokens": (lambda: Vit(2), IMAGE),
    "ViT, normalised queries": (lambda: Vit(attention=Explicit), IMAGE),
    "XCiT": (lambda: Vit(attention=CrossCovariance), IMAGE),
    "Swin": (Swin, IMAGE),
    "CoAtNet": (CoAtNet, IMAGE),
    "PVT": (Pyramid, IMAGE),
    "MobileViT": (MobileVit, IMAGE),
    "LeViT": (Levit, IMAGE),
    "CaiT": (ClassAttention, IMAGE),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_ships_as_it_was_simulated(name, ships):
    ships(name, *MODELS[name])
