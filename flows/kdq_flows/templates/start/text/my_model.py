"""Sentences of token numbers, padded to one length, and a network that tells their topic.

KDQ calls `data`, `teacher` and `student`. Replace the two functions marked REPLACE with your own:
1. `data` gives your token numbers, mask and labels,
2. `net` makes your network; `teacher` and `student` say how large each one is.
"""

import torch
from torch import nn

WORDS, LENGTH, TOPICS, PADDING = 120, 16, 3, 0


def data(split):
    """REPLACE: give the samples of "train", "validation" or "test".

    The names of a dict are the parameters of `forward`; `labels` are the labels. Here, `input_ids` are int64 `[N, 16]`,
    `attention_mask` is 1 where a token stands and 0 on padding, float32 `[N, 16]`. All sentences have one length here.
    For a file that takes every length, see "Sentences of every length" in docs/your-model.md.
    """
    seed, count = {"train": (0, 1500), "validation": (1, 200), "test": (2, 400)}[split]
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(TOPICS, (count,), generator=random)
    lengths = torch.randint(6, LENGTH + 1, (count, 1), generator=random)
    common = torch.randint(61, WORDS, (count, LENGTH), generator=random)
    typical = torch.randint(1, 21, (count, LENGTH), generator=random) + 20 * labels[:, None]  # words of the topic
    tokens = torch.where(torch.rand(count, LENGTH, generator=random) < 0.3, typical, common)
    there = torch.arange(LENGTH) < lengths
    return {"input_ids": tokens.where(there, PADDING), "attention_mask": there.float(), "labels": labels}


class Net(nn.Module):
    """An embedding and a GRU; the mean over the real tokens goes to a linear layer."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, TOPICS)

    def forward(self, input_ids, attention_mask):
        """Logits `[B, 3]` of token numbers `[B, 16]` and a mask `[B, 16]`."""
        states, _ = self.gru(self.embed(input_ids))
        mask = attention_mask.unsqueeze(-1)
        return self.head((states * mask).sum(1) / mask.sum(1).clamp(min=1))


def net(width):
    """REPLACE: make your network, without weights. It returns logits: one number for each topic."""
    return Net(width)


def teacher():
    """The large network, which KDQ trains on the labels."""
    return net(64)


def student():
    """The small network, which you ship: KDQ teaches it, quantizes it and exports it."""
    return net(16)
