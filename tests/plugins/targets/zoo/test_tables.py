"""Networks on tables, users and items, sets, points and graphs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Factors(nn.Module):
    """A factorisation machine beside a deep network: DeepFM."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10, 8) for _ in range(3))
        self.first = nn.ModuleList(nn.Embedding(10, 1) for _ in range(3))
        self.deep = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, fields):
        x = torch.stack([table(fields[:, i]) for i, table in enumerate(self.tables)], 1)
        pairs = 0.5 * (x.sum(1).square() - x.square().sum(1)).sum(1, keepdim=True)
        line = sum(table(fields[:, i]) for i, table in enumerate(self.first))
        return line + pairs + self.deep(x.flatten(1))


class Dlrm(nn.Module):
    """Bags of ids and numbers; the products of all pairs feed the last layers."""

    def __init__(self):
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(10, 8, mode=mode) for mode in ("sum", "mean"))
        self.bottom = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(11, 16), nn.ReLU(), nn.Linear(16, 1))
        rows, columns = torch.tril_indices(3, 3, -1)
        self.register_buffer("pairs", rows * 3 + columns)

    def forward(self, numbers, one, two):
        x = self.bottom(numbers)
        all_ = torch.stack([x, self.bags[0](one), self.bags[1](two)], 1)
        products = torch.bmm(all_, all_.transpose(1, 2)).flatten(1)
        return self.top(torch.cat([x, products[:, self.pairs]], 1))


class Wide(nn.Module):
    """A cross network beside a deep one: DCN v2."""

    def __init__(self):
        super().__init__()
        self.cross = nn.ModuleList(nn.Linear(10, 10) for _ in range(2))
        self.deep = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(26, 3)

    def forward(self, x):
        y = x
        for layer in self.cross:
            y = x * layer(y) + y
        return self.head(torch.cat([y, self.deep(x)], 1))


class Towers(nn.Module):
    """Two towers; the cosine of what they give, with a temperature."""

    def __init__(self):
        super().__init__()
        self.users, self.items = nn.Embedding(12, 8), nn.Embedding(12, 8)
        self.left, self.right = (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2))
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, user, item):
        one = F.normalize(self.left(self.users(user[:, 0])), dim=1)
        two = F.normalize(self.right(self.items(item[:, 0])), dim=1)
        return (one * two).sum(1, keepdim=True) * self.temperature.exp()


class Features(nn.Module):
    """FT-Transformer: each number is a token."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 12)), nn.Parameter(torch.randn(6, 12))
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.layer = nn.TransformerEncoderLayer(12, 2, 24, activation="relu", batch_first=True, norm_first=True)
        self.head = nn.Sequential(nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x):
        x = x.unsqueeze(-1) * self.weight + self.bias
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head(self.layer(x)[:, 0])


class Sets(nn.Module):
    """DeepSets: a sum over elements, in any order."""

    def __init__(self):
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x):
        return self.all(self.each(x).sum(1))


class Points(nn.Module):
    """PointNet: a matrix that the points themselves choose turns them; a maximum over points."""

    def __init__(self):
        super().__init__()
        self.turn = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU())
        self.matrix = nn.Linear(8, 9)
        self.each = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 1))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        matrix = self.matrix(self.turn(x).max(2)[0]).view(-1, 3, 3) + torch.eye(3)
        x = torch.bmm(x.transpose(2, 1), matrix).transpose(2, 1)
        return self.head(self.each(x).max(2)[0])


class Graph(nn.Module):
    """A graph convolution with a dense adjacency that is normalised at each call."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 12), nn.Linear(12, 12)])
        self.head = nn.Linear(12, 3)

    def forward(self, x, links):
        links = (links + links.transpose(1, 2)).sigmoid() + torch.eye(links.shape[1])
        degree = links.sum(2).rsqrt()
        links = degree.unsqueeze(2) * links * degree.unsqueeze(1)
        for layer in self.layers:
            x = F.relu(links @ layer(x))
        return self.head(x.mean(1))


class Sine(nn.Module):
    """SIREN: sines between linear layers."""

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Linear(2, 16), nn.Linear(16, 16)]), nn.Linear(16, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.sin(3 * layer(x))
        return self.head(x)


class Rotating(nn.Module):
    """A regression with a prelu, a softplus and two answers by name."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.PReLU(), nn.LayerNorm(16), nn.Linear(16, 16), nn.Mish())
        self.mean, self.spread = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, x):
        x = self.body(x)
        return {"mean": self.mean(x), "spread": F.softplus(self.spread(x)) + 1e-3}


def perceptron():
    layers = [nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 24), nn.SELU()]
    return nn.Sequential(nn.BatchNorm1d(8), *layers, nn.Linear(24, 3))


IDS = {"tokens": 10, "length": 3}
ONE = {"tokens": 12, "length": 1}
MODELS = {
    "MLP": (perceptron, [(8,)]),
    "DeepFM": (Factors, [IDS]),
    "DLRM": (Dlrm, [(4,), IDS, IDS]),
    "DCN v2": (Wide, [(10,)]),
    "Two towers": (Towers, [ONE, ONE]),
    "FT-Transformer": (Features, [(6,)]),
    "DeepSets": (Sets, [(6, 3)]),
    "PointNet": (Points, [(3, 12)]),
    "GCN": (Graph, [(5, 4), (5, 5)]),
    "SIREN": (Sine, [(2,)]),
    "Mean and spread": (Rotating, [(6,)]),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_ships_as_it_was_simulated(name, ships):
    ships(name, *MODELS[name])
