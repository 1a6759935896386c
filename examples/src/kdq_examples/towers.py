"""The net of the workload `goodbooks`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

MIDDLE = 3.9
"""Stars, about the mean of all ratings; the towers give the difference from it."""


class Tower(nn.Module):
    """An embedding and two linear layers, `[B] -> [B, size]`, beside a bias of each number, `[B, 1]`."""

    def __init__(self, count: int, size: int, dropout: float) -> None:
        super().__init__()
        self.table, self.bias = nn.Embedding(count, size), nn.Embedding(count, 1)
        nn.init.normal_(self.table.weight, std=0.1)
        nn.init.zeros_(self.bias.weight)
        self.drop = nn.Dropout(dropout)
        self.hidden, self.out = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vector and the bias."""
        vector: Tensor = self.out(F.relu(self.hidden(self.drop(self.table(number)))))
        return vector, self.bias(number)


class Towers(nn.Module):
    """A tower of readers and one of books; the rating is the product of their vectors plus both biases.

    Args:
        users: number of readers.
        books: number of books.
        size: numbers of an embedding.
        dropout: share of the embeddings' numbers that training sets to zero.
    """

    def __init__(self, users: int, books: int, size: int, dropout: float) -> None:
        super().__init__()
        self.users, self.books = Tower(users, size, dropout), Tower(books, size, dropout)

    def forward(self, user: Tensor, book: Tensor) -> Tensor:
        """Return ratings `[B, 1]` of readers `[B]` and books `[B]`."""
        (reader, generous), (text, good) = self.users(user), self.books(book)
        rating: Tensor = (reader * text).sum(1, keepdim=True) + generous + good + MIDDLE
        return rating
