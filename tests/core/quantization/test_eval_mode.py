"""What a model does in training alone is off in its graph; batch norm and dropout are what they are everywhere."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdq_core.errors import StageError
from kdq_core.quantization.capture import capture
from kdq_core.quantization.prepare import set_phase


class StochasticDepth(nn.Module):
    """Drops the whole branch of a sample in training (Huang et al. 2016)."""

    def __init__(self, drop: float = 0.5) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, device=x.device) >= self.drop
        return x * keep / (1 - self.drop)


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.training else x


class Net(nn.Module):
    """A layer in a residual branch between batch norm and dropout."""

    def __init__(self, layer: nn.Module, width: int = 6) -> None:
        super().__init__()
        self.before, self.norm, self.drop = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.5)
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.before(x)))
        return self.head(x + self.layer(x))


class Maps(nn.Module):
    """Makes maps for a layer that takes them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(-1, 2, 3, 1).expand(-1, 2, 3, 2)).mean(3).flatten(1)


LAYERS = {
    "stochastic depth": StochasticDepth,
    "stochastic depth, rarely": lambda: StochasticDepth(1e-6),  # not seen in a draw or two
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "feature alpha dropout": lambda: nn.FeatureAlphaDropout(0.5),
    "rrelu": nn.RReLU,
    "rrelu of other slopes": lambda: nn.RReLU(0.0, 0.5, inplace=True),
    "instance norm": lambda: Maps(nn.InstanceNorm2d(2, track_running_stats=True, affine=True)),
    "a branch": Doubling,
}


def trained(layer: nn.Module) -> nn.Module:
    """With statistics of its own."""
    torch.manual_seed(0)
    model = Net(layer).train()
    for _ in range(3):
        model(torch.randn(16, 6))
    return model.eval()


def samples(count: int = 8) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LAYERS)
def test_what_a_model_does_in_training_alone_is_off_in_its_graph(name: str) -> None:
    model, x = trained(LAYERS[name]()), samples()
    graph = capture(model, (samples(2),))
    with torch.no_grad():
        expected = model(x)
        graph.eval()
        assert torch.allclose(graph(x), expected, atol=1e-6)
        assert torch.equal(graph(x), graph(x))
    graph.train()
    torch.manual_seed(0)
    before = copy.deepcopy(graph.state_dict())
    assert not torch.equal(graph(x), graph(x))  # dropout drops
    assert not torch.equal(graph.state_dict()["norm.running_mean"], before["norm.running_mean"])
    assert set(model.state_dict()) - set(before) <= {"layer.layer.num_batches_tracked"}  # nothing reads that
    assert set(before) <= set(model.state_dict())


@pytest.mark.parametrize("layer", [nn.Identity(), StochasticDepth()], ids=["as in training", "as in eval mode"])
def test_a_batch_norm_that_the_model_keeps_in_eval_mode_stays_so(layer: nn.Module) -> None:
    class Frozen(Net):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self.norm.eval()
            return self

    torch.manual_seed(0)
    graph = capture(Frozen(layer), (samples(2),))
    set_phase(graph, observe=True, quantize=True, freeze_batch_norm=False)
    before = graph.state_dict()["norm.running_mean"].clone()
    graph.train()(samples())
    assert torch.equal(graph.state_dict()["norm.running_mean"], before)


def test_a_model_that_draws_numbers_in_eval_mode_too_is_refused() -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    with pytest.raises(StageError) as caught:
        capture(Net(Drawing()), (samples(2),))
    assert str(caught.value) == (
        "model 'Net' gives other answers in eval mode than the graph captured from it: it draws random numbers there, "
        "or keeps a state; let its answers in eval mode depend on its inputs alone"
    )


def test_capture_changes_neither_the_model_nor_the_random_state() -> None:
    model = trained(StochasticDepth())
    weights, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    capture(model, (samples(2),))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not model.training


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padding_is_no_reason_to_refuse_a_transformer() -> None:
    """In eval mode torch's fused layers answer with zeros there, and no graph does."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
            self.words, self.encoder = nn.Embedding(5, 8), nn.TransformerEncoder(layer, 2)

        def forward(self, x: Tensor) -> Tensor:
            given: Tensor = self.encoder(self.words(x), src_key_padding_mask=x == 0)
            return given

    torch.manual_seed(0)
    x = torch.tensor([[1, 2, 3, 4], [3, 1, 0, 0], [2, 0, 0, 0]])
    model = Padded().eval()
    graph = capture(model, (x,)).train()
    assert not torch.equal(graph(x), graph(x))  # captured as in training: its dropout drops
    with torch.no_grad():
        assert torch.allclose(graph.eval()(x)[x > 0], model(x)[x > 0], atol=1e-5)
