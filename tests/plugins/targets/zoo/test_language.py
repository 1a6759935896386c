"""Language models of transformers' families: masks, causal order, relative and rotary positions, shared layers."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, LENGTH, WIDTH = 20, 7, 16


class Attention(nn.Module):
    """Attention with a mask that is added; fewer heads for keys and values if asked."""

    def __init__(self, heads=2, groups=2, bias=True, scale=None):
        super().__init__()
        self.heads, self.groups, self.scale = heads, groups, scale
        size = WIDTH // heads
        self.q, self.out = nn.Linear(WIDTH, WIDTH, bias=bias), nn.Linear(WIDTH, WIDTH, bias=bias)
        self.k, self.v = (nn.Linear(WIDTH, groups * size, bias=bias) for _ in range(2))

    def forward(self, x, added=None, rotate=None, causal=False):
        count, length, _ = x.shape
        q, k, v = (
            part(x).view(count, length, -1, WIDTH // self.heads).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        if self.groups < self.heads:
            k, v = (part.repeat_interleave(self.heads // self.groups, 1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, added, is_causal=causal, scale=self.scale)
        return self.out(y.transpose(1, 2).reshape(count, length, WIDTH))


class Layer(nn.Module):
    """BERT's: a norm behind each sum."""

    def __init__(self):
        super().__init__()
        self.attention, self.norms = Attention(), nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x, added):
        x = self.norms[0](x + F.dropout(self.attention(x, added), 0.1, self.training))
        return self.norms[1](x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """Tokens and a mask; with a pooler, or DistilBERT's head; ALBERT repeats one layer behind a narrow table."""

    def __init__(self, shared=False, pooler=True, narrow=None, by_mask=False):
        super().__init__()
        self.shared, self.by_mask = shared, by_mask
        self.words, self.places = nn.Embedding(VOCABULARY, narrow or WIDTH), nn.Embedding(LENGTH + 2, narrow or WIDTH)
        self.norm = nn.LayerNorm(narrow or WIDTH)
        self.widen = nn.Linear(narrow, WIDTH) if narrow else nn.Identity()
        self.layers = nn.ModuleList(Layer() for _ in range(1 if shared else 2))
        self.pooler, self.activation = nn.Linear(WIDTH, WIDTH), nn.Tanh() if pooler else nn.ReLU()
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, tokens, mask):
        order = torch.cumsum(mask, 1) * mask + 1 if self.by_mask else torch.arange(tokens.shape[1])
        x = self.widen(self.norm(self.words(tokens) + self.places(order)))
        added = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for _ in range(2 if self.shared else 1):
            for layer in self.layers:
                x = layer(x, added)
        return self.head(self.activation(self.pooler(x[:, 0])))


class Gpt(nn.Module):
    """A causal decoder whose last layer is the table of its words."""

    def __init__(self, tied=True):
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norms, self.last = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2)), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(approximate="tanh"), nn.Linear(32, WIDTH))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        x = x + self.attention(self.norms[0](x), causal=True)
        return self.head(self.last(x + self.mlp(self.norms[1](x))))


class RmsNorm(nn.Module):
    """Divides by the root of the mean square."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class T5(nn.Module):
    """Buckets of relative positions, scores that are not scaled, and a gated feed-forward layer."""

    def __init__(self):
        super().__init__()
        self.words, self.bias = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(8, 2)
        self.norms, self.last = nn.ModuleList(RmsNorm() for _ in range(2)), RmsNorm()
        self.attention = Attention(bias=False, scale=1.0)
        self.gate, self.up, self.down = (nn.Linear(*s, bias=False) for s in ((WIDTH, 32), (WIDTH, 32), (32, WIDTH)))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, tokens):
        x, at = self.words(tokens), torch.arange(tokens.shape[1])
        apart = at[None] - at[:, None]
        far = (torch.log(apart.abs().clamp(min=1).float() / 2) / math.log(4) * 2 + 2).long().clamp(max=3)
        bucket = torch.where(apart.abs() < 2, apart.abs(), far) + (apart > 0) * 4
        x = x + self.attention(self.norms[0](x), self.bias(bucket).permute(2, 0, 1)[None])
        y = self.norms[1](x)
        x = x + self.down(F.gelu(self.gate(y), approximate="tanh") * self.up(y))
        return self.head(self.last(x)[:, -1])


class Llama(nn.Module):
    """Rotary positions, root mean squares, SwiGLU, and keys that heads share."""

    def __init__(self):
        super().__init__()
        self.words, self.norms, self.last = (
            nn.Embedding(VOCABULARY, WIDTH),
            nn.ModuleList(RmsNorm() for _ in range(2)),
            RmsNorm(),
        )
        self.attention = Attention(4, 2, bias=False)
        self.gate, self.up, self.down = (nn.Linear(*s, bias=False) for s in ((WIDTH, 32), (WIDTH, 32), (32, WIDTH)))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("speeds", 1.0 / 100 ** (torch.arange(0, 4, 2) / 4), persistent=False)

    def forward(self, tokens):
        angles = torch.outer(torch.arange(tokens.shape[1]).float(), self.speeds)
        cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))

        def rotate(x):
            first, second = x.chunk(2, -1)
            return x * cos + torch.cat([-second, first], -1) * sin

        x = self.words(tokens)
        x = x + self.attention(self.norms[0](x), rotate=rotate, causal=True)
        y = self.norms[1](x)
        return self.head(self.last(x + self.down(F.silu(self.gate(y)) * self.up(y))))


class Translator(nn.Module):
    """PyTorch's own encoder and decoder."""

    def __init__(self):
        super().__init__()
        self.words, self.answers = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
        self.both = nn.Transformer(WIDTH, 2, 1, 1, 32, 0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source, target):
        mask = torch.full((target.shape[1],) * 2, -torch.inf).triu(1)
        return self.head(self.both(self.words(source), self.answers(target), tgt_mask=mask))


class Perceiver(nn.Module):
    """A few learned vectors read a long input."""

    def __init__(self):
        super().__init__()
        self.words, self.latents = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.randn(3, WIDTH))
        self.cross, self.own = (nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(2))
        self.norms, self.head = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2)), nn.Linear(WIDTH, 5)

    def forward(self, tokens):
        x, y = self.words(tokens), self.latents.expand(tokens.shape[0], -1, -1)
        y = self.norms[0](y + self.cross(y, x, x, need_weights=False)[0])
        y = self.norms[1](y + self.own(y, y, y, need_weights=False)[0])
        return self.head(y.mean(1))


class Linear(nn.Module):
    """Linear attention: einsum over positions, with elu + 1 as its kernel."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 5)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, tokens):
        x = self.words(tokens)
        q, k = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1
        kv = torch.einsum("bld,ble->bde", k, self.v(x))
        y = torch.einsum("bld,bde->ble", q, kv) / torch.einsum("bld,bd->bl", q, k.sum(1)).unsqueeze(-1)
        return self.head(y.mean(1))


class Experts(nn.Module):
    """A mixture of experts, weighed by a softmax; the experts' weights are one tensor."""

    def __init__(self):
        super().__init__()
        self.words, self.gate = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 3)
        self.experts = nn.Parameter(torch.randn(3, WIDTH, WIDTH) * 0.3)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, tokens):
        x = self.words(tokens)
        made = torch.einsum("bld,edf->blef", x, self.experts)
        return self.head((F.relu(made) * self.gate(x).softmax(-1).unsqueeze(-1)).sum(2).mean(1))


class TextCnn(nn.Module):
    """Convolutions of several widths over words, and their maxima."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.convs = nn.ModuleList(nn.Conv1d(WIDTH, 8, k) for k in (2, 3, 4))
        self.head = nn.Linear(24, 5)

    def forward(self, tokens):
        x = self.words(tokens).transpose(1, 2)
        return self.head(torch.cat([F.relu(conv(x)).amax(2) for conv in self.convs], 1))


class Attentive(nn.Module):
    """A recurrent layer in both directions, pooled by attention under a mask."""

    def __init__(self, kind):
        super().__init__()
        self.words, self.rnn = nn.Embedding(VOCABULARY, WIDTH), kind(WIDTH, 8, bidirectional=True, batch_first=True)
        self.score, self.head = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1)), nn.Linear(16, 5)

    def forward(self, tokens, mask):
        y = self.rnn(self.words(tokens))[0]
        weights = self.score(y).squeeze(-1).masked_fill(mask == 0, -1e4).softmax(1)
        return self.head((weights.unsqueeze(1) @ y).squeeze(1))


WORDS, MASK = {"tokens": VOCABULARY, "length": LENGTH}, {"mask": LENGTH}
MODELS = {
    "BERT": (Bert, [WORDS, MASK]),
    "DistilBERT": (lambda: Bert(pooler=False), [WORDS, MASK]),
    "RoBERTa": (lambda: Bert(by_mask=True), [WORDS, MASK]),
    "ALBERT": (lambda: Bert(shared=True, narrow=8), [WORDS, MASK]),
    "GPT": (Gpt, [WORDS]),
    "T5 encoder": (T5, [WORDS]),
    "Llama": (Llama, [WORDS]),
    "Encoder and decoder": (Translator, [WORDS, {"tokens": VOCABULARY, "length": 5}]),
    "Perceiver": (Perceiver, [WORDS]),
    "Linear attention": (Linear, [WORDS]),
    "Mixture of experts": (Experts, [WORDS]),
    "TextCNN": (TextCnn, [WORDS]),
    "BiLSTM with attention": (lambda: Attentive(nn.LSTM), [WORDS, MASK]),
    "BiGRU with attention": (lambda: Attentive(nn.GRU), [WORDS, MASK]),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_ships_as_it_was_simulated(name, ships):
    ships(name, *MODELS[name])
