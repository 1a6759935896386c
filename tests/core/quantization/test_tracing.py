import pytest
import torch
from torch import nn

from kdq_core.quantization.tracing import export_program


class Read(nn.Module):
    """The last step of a recurrent layer."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], **options: object) -> None:
        super().__init__()
        self.layer = kind(3, 5, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0][:, -1]


@pytest.mark.parametrize(("kind", "operator"), [(nn.LSTM, "kdq.lstm.default"), (nn.GRU, "kdq.gru.default")])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
def test_a_recurrent_layer_is_traced_as_one_operator_with_a_free_batch(kind, operator, options):
    model = Read(kind, **options).eval()
    program = export_program(model, (torch.randn(2, 7, 3),))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(operator) == 1
    assert not [name for name in called if name.startswith(("aten.lstm", "aten.gru", "aten.linear", "aten.sigmoid"))]
    x = torch.randn(9, 7, 3)
    torch.testing.assert_close(program.module()(x), model(x))


def test_outputs_projected_to_another_size_keep_it():
    model = Read(nn.LSTM, proj_size=2).eval()
    program = export_program(model, (torch.randn(2, 7, 3),))
    assert tuple(program.graph.output_node().args[0][0].meta["val"].shape[1:]) == (2,)


def test_outside_of_tracing_the_layers_are_torchs_own():
    model = Read(nn.GRU)
    model(torch.randn(2, 7, 3)).sum().backward()
    assert model.layer.weight_hh_l0.grad.abs().max() > 0


def test_a_forward_with_named_and_further_inputs_is_traced_with_a_free_batch():
    class Further(nn.Module):
        def forward(self, x, *more):
            return x + sum(more)

    x = torch.randn(2, 3)
    for count in (1, 3):
        program = export_program(Further(), (x,) * count).module()
        assert torch.equal(program(*(x[:1],) * count), x[:1] * count)
