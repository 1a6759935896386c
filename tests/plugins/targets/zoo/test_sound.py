"""Networks on one axis: causal and gated convolutions, conv-transformers, recurrent layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class Causal(nn.Module):
    """TCN's block: padded on one side only, dilated, with weight norm."""

    def __init__(self, given, made, dilation):
        super().__init__()
        self.pad = nn.ConstantPad1d((2 * dilation, 0), 0.0)
        self.conv = weight_norm(nn.Conv1d(given, made, 3, dilation=dilation))
        self.same = nn.Conv1d(given, made, 1) if given != made else nn.Identity()

    def forward(self, x):
        return F.relu(self.conv(self.pad(x)).relu() + self.same(x))


class Wavenet(nn.Module):
    """A tanh times a sigmoid, with skips that are summed."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(1, 8, 1)
        self.gated = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=d) for d in (1, 2, 4))
        self.skips = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Conv1d(8, 4, 1))

    def forward(self, x):
        x, total = self.first(x), 0
        for gated, skip in zip(self.gated, self.skips):
            a, b = gated(F.pad(x, (gated.dilation[0], 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            total = total + skip(y)
            x = x + y
        return self.last(total)


class Wav2vec(nn.Module):
    """Convolutions on the wave with group norm, positions by a grouped convolution, an encoder."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, 16, 10, 5, bias=False), nn.GroupNorm(16, 16)
        self.second, self.after = nn.Conv1d(16, 16, 3, 2, bias=False), nn.LayerNorm(16)
        self.where = weight_norm(nn.Conv1d(16, 16, 4, padding=2, groups=4), dim=2)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True)
        self.head = nn.Linear(16, 6)

    def forward(self, x):
        x = F.gelu(self.second(F.gelu(self.norm(self.first(x)))))
        x = self.after(x.transpose(1, 2))
        x = x + F.gelu(self.where(x.transpose(1, 2))[:, :, :-1]).transpose(1, 2)
        return self.head(self.encoder(x))


class Conformer(nn.Module):
    """Half steps around attention and a gated depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.given = nn.Linear(8, 16)
        step = lambda: nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))  # noqa: E731
        self.before, self.after = step(), step()
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.inner, self.up, self.down = nn.LayerNorm(16), nn.Conv1d(16, 32, 1), nn.Conv1d(16, 16, 1)
        self.deep = nn.Sequential(nn.Conv1d(16, 16, 5, padding=2, groups=16), nn.BatchNorm1d(16), nn.SiLU())
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 6)

    def forward(self, x):
        x = self.given(x)
        x = x + 0.5 * self.before(x)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = F.glu(self.up(self.inner(x).transpose(1, 2)), 1)
        x = x + self.down(self.deep(y)).transpose(1, 2)
        return self.head(self.last(x + 0.5 * self.after(x)))


def spotter():
    """DS-CNN for key words: depthwise layers on a spectrogram."""
    deep = [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU()]
    return nn.Sequential(
        nn.Conv2d(1, 8, (4, 3), (2, 2)), nn.ReLU(), *deep, nn.AvgPool2d((3, 2)), nn.Flatten(), nn.Linear(24, 6)
    )


class Spectral(nn.Module):
    """CRNN: columns of a small image are the steps of a recurrent layer in both directions."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.rnn = nn.LSTM(24, 8, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 6)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), (2, 1))
        return self.head(self.rnn(x.permute(0, 3, 1, 2).flatten(2))[0]).log_softmax(-1)


class Layers(nn.Module):
    """Recurrent layers on top of each other, read at the end or as a mean."""

    def __init__(self, kind, last):
        super().__init__()
        self.rnn, self.last = kind(6, 8, 2, batch_first=True), last
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y, state = self.rnn(x)
        state = state[0] if isinstance(state, tuple) else state
        return self.head(state[-1] if self.last else y.mean(1))


class Forecast(nn.Module):
    """N-BEATS: what one block explains is taken from what the next one reads."""

    def __init__(self):
        super().__init__()
        made = lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 16))  # noqa: E731
        self.blocks = nn.ModuleList(made() for _ in range(3))

    def forward(self, x):
        answer = 0
        for part in self.blocks:
            back, ahead = part(x).split([12, 4], 1)
            x, answer = x - back, answer + ahead
        return answer


MODELS = {
    "TCN": (lambda: nn.Sequential(Causal(3, 8, 1), Causal(8, 8, 2), nn.Conv1d(8, 4, 1)), [(3, 16)]),
    "WaveNet": (Wavenet, [(1, 16)]),
    "wav2vec 2.0": (Wav2vec, [(1, 80)]),
    "Conformer": (Conformer, [(10, 8)]),
    "DS-CNN": (spotter, [(1, 12, 10)]),
    "CRNN": (Spectral, [(1, 8, 6)]),
    "LSTM": (lambda: Layers(nn.LSTM, last=True), [(7, 6)]),
    "GRU": (lambda: Layers(nn.GRU, last=False), [(7, 6)]),
    "RNN": (lambda: Layers(nn.RNN, last=True), [(7, 6)]),
    "N-BEATS": (Forecast, [(12,)]),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_ships_as_it_was_simulated(name, ships):
    ships(name, *MODELS[name])
