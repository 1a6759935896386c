"""Rows with two categories and six numbers, and a network that predicts one of two classes.

KDQ calls `data`, `teacher` and `student`. Replace the two functions marked REPLACE with your own:
1. `data` gives the rows of your table and their labels,
2. `net` makes your network; `teacher` and `student` say how large each one is.
For a CSV or Parquet file, the workload `table` reads it without code: see docs/your-model.md.
"""

import torch
from torch import nn
from torch.nn import functional as F

CITIES, PRODUCTS, NUMBERS, CLASSES = 12, 8, 6, 2


def data(split):
    """REPLACE: give the rows of "train", "validation" or "test".

    The names of a dict are the parameters of `forward`; `labels` are the labels. Here, `categories` are int64 `[N, 2]`,
    `numbers` float32 `[N, 6]`, and labels 0 or 1. Scale the numbers in the network, as its batch norm does: the file
    that you ship gets them as they are.
    """
    seed, count = {"train": (0, 2000), "validation": (1, 300), "test": (2, 500)}[split]
    random, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(9)
    categories = torch.stack([torch.randint(size, (count,), generator=random) for size in (CITIES, PRODUCTS)], 1)
    numbers = torch.randn(count, NUMBERS, generator=random)
    city, product = (torch.randn(size, generator=fixed) for size in (CITIES, PRODUCTS))
    worth = city[categories[:, 0]] * numbers[:, 0] + product[categories[:, 1]] + numbers[:, 1] - numbers[:, 2]
    labels = (worth + 0.3 * torch.randn(count, generator=random) > 0).long()
    return {"categories": categories, "numbers": 5 * numbers + 20, "labels": labels}


class Net(nn.Module):
    """Embeddings of the categories beside the numbers, and two hidden layers."""

    def __init__(self, width):
        super().__init__()
        self.city, self.product = nn.Embedding(CITIES, 8), nn.Embedding(PRODUCTS, 8)
        self.scale = nn.BatchNorm1d(NUMBERS)
        self.first, self.second = nn.Linear(16 + NUMBERS, width), nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, categories, numbers):
        """Logits `[B, 2]` of categories `[B, 2]` and numbers `[B, 6]`."""
        parts = (self.city(categories[:, 0]), self.product(categories[:, 1]), self.scale(numbers))
        x = F.relu(self.first(torch.cat(parts, 1)))
        return self.head(F.relu(self.second(x)))


def net(width):
    """REPLACE: make your network, without weights. It returns logits: one number for each class."""
    return Net(width)


def teacher():
    """The large network, which KDQ trains on the labels."""
    return net(128)


def student():
    """The small network, which you ship: KDQ teaches it, quantizes it and exports it."""
    return net(24)
