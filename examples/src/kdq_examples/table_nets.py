"""The net of the workload `adult`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CODES, NUMBERS, CLASSES = 14, 6, 2


class TableNet(nn.Module):
    """Embeddings of 14 codes beside 6 numbers, two hidden layers and a head: `[B, 14], [B, 6] -> [B, 2]`.

    Args:
        codes: number of codes of all columns together.
        size: numbers of an embedding.
        width: width of the hidden layers.
        dropout: share of the hidden values that training sets to zero.
    """

    def __init__(self, codes: int, size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(codes, size)
        nn.init.normal_(self.table.weight, std=0.1)
        self.first, self.second = nn.Linear(CODES * size + NUMBERS, width), nn.Linear(width, width)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, CLASSES)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Return logits `[B, 2]`."""
        x = torch.cat((self.table(codes).flatten(1), numbers), 1)
        x = self.drop(F.relu(self.first(x)))
        logits: Tensor = self.head(self.drop(F.relu(self.second(x))))
        return logits
