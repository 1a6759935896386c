"""What a model does in training alone is off in its graph; dropout and batch norm train as they do in the model."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdq_core.errors import StageError
from kdq_core.quantization.capture import BatchNorm, Dropout, capture
from kdq_core.quantization.prepare import set_phase
from kdq_core.quantization.refine import reestimate_batch_norm


class DropPath(nn.Module):
    """Stochastic depth as in timm; `scaled` divides what is kept by the share of it."""

    def __init__(self, p=0.5, scaled=True):
        super().__init__()
        self.p, self.scaled = p, scaled

    def forward(self, x):
        if not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * (mask / (1 - self.p) if self.scaled else mask)


class Doubles(nn.Module):
    def forward(self, x):
        return 2 * x if self.training else x


class SkipsByChance(nn.Module):
    """Skips in training by a branch on a random number, which no graph can take, as the layers of wav2vec2 do."""

    def forward(self, x):
        return x if self.training and torch.rand([]) < 0.5 else torch.tanh(x)


class Residual(nn.Module):
    """A block whose branch is dropped, as in a transformer; its batch norm and dropout train."""

    def __init__(self, drop):
        super().__init__()
        self.norm, self.linear, self.plain, self.drop = nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Dropout(0.5), drop

    def forward(self, x):
        return x + self.drop(self.plain(self.linear(self.norm(x))))


class Still(nn.Module):
    """Two batch norms and two dropouts; one of each stays in eval mode."""

    def __init__(self, last=None):
        super().__init__()
        self.still, self.moves = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.off, self.on = nn.Dropout(0.5), nn.Dropout(0.5)
        self.last = nn.Identity() if last is None else last

    def train(self, mode=True):
        super().train(mode)
        self.still.eval()
        self.off.eval()
        return self

    def forward(self, x):
        return self.last(self.on(self.moves(self.off(self.still(x)))))


def warmed(model, x):
    """`model` in eval mode after some steps that move its statistics."""
    torch.manual_seed(0)
    model.train()
    for _ in range(3):
        model(torch.randn_like(x) + 1)
    return model.eval()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (DropPath(), (8, 6)),
        (nn.AlphaDropout(0.5), (8, 6)),
        (nn.AlphaDropout(0.5, inplace=True), (8, 6)),
        (nn.FeatureAlphaDropout(0.5), (8, 4, 5, 6)),
        (nn.RReLU(), (8, 6)),
        (nn.RReLU(0.3, 0.5, inplace=True), (8, 6)),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (8, 4, 5, 6)),
        (Doubles(), (8, 6)),
    ],
    ids=str,
)
def test_in_both_modes_the_graph_does_what_the_model_does_in_eval_mode(layer, shape):
    x = torch.randn(shape)
    model = warmed(nn.Sequential(nn.Linear(6, 6), layer), x)
    wanted = model(x)
    graph = capture(model, (torch.randn(2, *shape[1:]),))
    assert torch.allclose(graph(x), wanted, atol=1e-6)
    assert torch.allclose(graph.eval()(x), wanted, atol=1e-6)
    assert not [n.name for n in graph.graph.nodes if torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ())]


def test_a_draw_that_changes_nothing_for_the_example_is_found():
    x = torch.randn(64, 6)
    model = nn.Sequential(nn.Linear(6, 6), DropPath(0.01, scaled=False))
    graph = capture(model, (torch.randn(2, 6),))
    assert all(torch.equal(graph(x), model.eval()(x)) for _ in range(9))


def test_beside_a_branch_of_training_alone_batch_norm_and_dropout_train():
    model = Still(SkipsByChance())
    captured = capture(model, (torch.randn(4, 6),))
    norms, drops = ([m for m in captured.modules() if isinstance(m, kind)] for kind in (BatchNorm, Dropout))
    assert [norm.fixed for norm in norms] == [True, False]
    x = torch.randn(200, 6)
    torch.testing.assert_close(captured.eval()(x), model.eval()(x))
    captured.train()(x)
    torch.testing.assert_close(norms[1].running_mean, 0.1 * x.mean(0), atol=1e-4, rtol=1e-4)
    assert [bool((drop.train()(torch.ones(200)) == 0).any()) for drop in drops][-1]


def test_a_branch_on_values_is_refused_in_both_modes(capfd):
    class Both(SkipsByChance):
        def forward(self, x):
            return x if x.sum() > 0 else super().forward(x)

    with pytest.raises(StageError, match=r"^model 'Both' cannot be captured as a graph: its forward needs the value"):
        capture(Both(), (torch.randn(4, 6),))
    assert "torch.ops.aten" not in "".join(capfd.readouterr())  # the graph so far, which torch prints


def test_beside_stochastic_depth_batch_norm_and_dropout_train():
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    graph = capture(Residual(DropPath()), (x,))
    assert not torch.equal(graph(x), graph(x))
    assert int(graph.norm.num_batches_tracked) == 2
    assert [m.p for m in graph.modules() if isinstance(m, Dropout)] == [0.5]
    graph.eval()
    assert torch.equal(graph(x), graph(x))


@pytest.mark.parametrize("weights", [False, True])
def test_beside_stochastic_depth_attention_drops_out_in_training(weights):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True)
            self.path = DropPath()

        def forward(self, x):
            return x + self.path(self.attention(x, x, x, need_weights=weights)[0])

    torch.manual_seed(0)
    model, x = Attends(), torch.randn(4, 3, 6)
    graph = capture(model, (x,))
    assert not torch.equal(graph(x), graph(x))
    assert torch.allclose(graph.eval()(x), model.eval()(x), atol=1e-6)


def test_beside_stochastic_depth_attention_by_a_function_drops_out_in_training():
    class Attends(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)

    torch.manual_seed(0)
    x = torch.randn(16, 2, 3, 6)
    graph = capture(nn.Sequential(Attends(), DropPath()), (x,))
    assert not torch.equal(graph(x), graph(x))
    assert torch.equal(graph.eval()(x), graph(x))


def test_a_transformer_beside_stochastic_depth_is_captured_by_its_operators():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.5, batch_first=True)
    model, x = nn.Sequential(nn.TransformerEncoder(layer, 2), DropPath()).requires_grad_(False), torch.randn(4, 3, 6)
    with torch.no_grad():
        graph = capture(model, (x,))
    linear = [node for node in graph.graph.nodes if node.target == torch.ops.aten.linear.default]
    assert len(linear) == 8
    assert not torch.equal(graph(x), graph(x))
    assert torch.allclose(graph.eval()(x), model.eval()(x), atol=1e-5)


@pytest.mark.parametrize("last", [None, DropPath()], ids=["in training", "in eval mode"])
def test_what_the_model_keeps_in_eval_mode_stays_there(last):
    x = torch.randn(8, 6) + 3
    graph = capture(Still(last), (x,))
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    set_phase(graph, observe=False, quantize=False, freeze_batch_norm=False)
    graph.train()(x)
    reestimate_batch_norm(graph, [(x,)])
    moved = {name for name, value in graph.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"moves.running_mean", "moves.running_var", "moves.num_batches_tracked"}
    assert {m.fixed for m in (graph.still, graph.moves) if isinstance(m, BatchNorm)} == {True, False}
    assert sorted(m.p for m in graph.modules() if isinstance(m, Dropout)) == [0.0, 0.5]


@pytest.mark.parametrize("drop", [nn.Identity(), DropPath()], ids=["train", "eval"])
def test_random_state_buffers_and_fast_path_are_left_alone(drop):
    model, x = Residual(drop), torch.randn(8, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    graph = capture(model, (x,))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(torch.equal(graph.state_dict()[name], value) for name, value in before.items())
    assert model.training


def test_a_model_that_is_not_a_number_is_compared_too():
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
    nn.init.constant_(model[0].bias, float("nan"))
    nodes = capture(model, (torch.randn(4, 6),)).graph.nodes
    assert "dropout" in [node.name for node in nodes]


def refuse(model):
    with pytest.raises(StageError) as caught:
        capture(model, (torch.randn(4, 6),))
    return str(caught.value)


def test_dropout_in_eval_mode_is_refused_with_its_module():
    class Always(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5)

    assert refuse(nn.Sequential(nn.Linear(6, 6), nn.Sequential(Always()), nn.Linear(6, 6))) == (
        "model 'Sequential' cannot be captured as a graph: module '1.0' gives other results at each call in eval mode, "
        "too, which a graph cannot repeat; let what is random or counts calls depend on self.training, as "
        "F.dropout(x, p, self.training) does"
    )


class Elsewhere(nn.Module):
    def forward(self, x):
        return x + 1 if torch.compiler.is_exporting() else x + 2


def test_other_results_in_a_graph_are_refused_with_their_module():
    text = (
        "model {!r} cannot be captured as a graph: in eval mode {} gives other results than its graph; compute them "
        "from inputs, parameters and buffers alone"
    )
    inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Elsewhere())
    assert refuse(nn.Sequential(inner, nn.Linear(6, 6))) == text.format("Sequential", "module '0.2'")
    assert refuse(Elsewhere()) == text.format("Elsewhere", "its forward")
