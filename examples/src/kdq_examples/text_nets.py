"""Nets for sentences: numbers of tokens `[B, L]`, of which 0 is padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextTransformer(nn.Module):
    """Encoder that does not look at padding, mean over the tokens, linear head: `[B, L] -> [B, classes]`."""

    def __init__(self, words: int, classes: int, width: int, layers: int, length: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.words, self.places = table(words, width, 0.1), table(length, width, 0.02)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(width, max(1, width // 32), 2 * width, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)
        self.register_buffer("places_of", torch.arange(length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[B, classes]`."""
        padding = tokens == 0
        x = self.dropout(self.words(tokens) + self.places(self.places_of))
        logits: Tensor = self.head(mean(self.encoder(x, src_key_padding_mask=padding), padding))
        return logits


class TextGru(nn.Module):
    """GRU in both directions, mean over the tokens, linear head: `[B, L] -> [B, classes]`."""

    def __init__(self, words: int, classes: int, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.words, self.dropout = table(words, width, 0.1), nn.Dropout(dropout)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[B, classes]`."""
        x, _ = self.gru(self.dropout(self.words(tokens)))
        logits: Tensor = self.head(self.dropout(mean(x, tokens == 0)))
        return logits


class BagOfWords(nn.Module):
    """Mean of token vectors and two linear layers, `[B, L] -> [B, classes]`."""

    def __init__(self, words: int, classes: int, width: int) -> None:
        super().__init__()
        self.words = table(words, width, 0.1)
        self.hidden, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits `[B, classes]`."""
        logits: Tensor = self.head(F.relu(self.hidden(self.words(tokens).mean(1))))
        return logits


def table(rows: int, width: int, spread: float) -> nn.Embedding:
    """Vectors from N(0, spread^2)."""
    made = nn.Embedding(rows, width)
    nn.init.normal_(made.weight, std=spread)
    return made


def mean(x: Tensor, padding: Tensor) -> Tensor:
    """Mean of `[B, L, C]` over the places that are not padding."""
    kept = (~padding).to(x.dtype).unsqueeze(-1)
    return (x * kept).sum(1) / kept.sum(1)
