"""An embedding rounds the rows that a batch reads: the same values and gradients as if it rounded its whole table."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from kdq_core.plugins.kinds import Quantizer
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert
from kdq_core.quantization.prepare import prepare, set_phase, weights_of
from kdq_core.quantization.rows import LookUp, look_up_tables
from kdq_quantizers.lsq import Lsq
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_quantizers.pact import Pact
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

ROWS = 40


class Text(nn.Module):
    """Reads rows of a table, adds those of a second one, and classifies their mean."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(ROWS, 8, padding_idx=padding), nn.Embedding(5, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[B, 3]` of tokens `[B, 5]`."""
        rows = self.tokens(tokens) + self.places(torch.arange(5))
        return self.head(torch.tanh(rows).mean(1))  # type: ignore[no-any-return]


def prepared(quantizer: Quantizer, padding: int | None, bits: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A prepared model that looks rows up, and one of the same weights that rounds whole tables; both calibrated."""
    torch.manual_seed(0)
    graph = capture(Text(padding), (torch.randint(0, ROWS, (2, 5)),))
    places = [
        replace(place, bits=bits) if place.role == "weight" else place for place in OnnxRuntimeCpu().places(graph)
    ]
    rows = prepare(graph, places, quantizer)
    set_phase(rows, observe=True, quantize=False, freeze_batch_norm=False)
    rows.train()(torch.randint(0, ROWS, (16, 5)))
    set_phase(rows, observe=False, quantize=True, freeze_batch_norm=False)
    whole = copy.deepcopy(rows)
    look_up_tables(whole)
    return rows, whole


def look_ups(model: fx.GraphModule) -> list[str]:
    modules = dict(model.named_modules())
    return [
        node.name for node in model.graph.nodes if node.op == "call_module" and isinstance(modules[node.target], LookUp)
    ]


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize(("quantizer", "padding", "bits"), [(MinMaxQat(), None, 8), (Lsq(), None, 4), (Lsq(), 0, 4)])
def test_rows_and_whole_tables_give_the_same_values_and_gradients(
    quantizer: Quantizer, padding: int | None, bits: int, batch: int
) -> None:
    rows, whole = prepared(quantizer, padding, bits)
    assert (len(look_ups(rows)), look_ups(whole)) == (1, [])
    tokens = torch.randint(0, ROWS, (batch, 5), generator=torch.Generator().manual_seed(batch))
    tokens[:, -1] = 0
    outputs = [model.train()(tokens) for model in (rows, whole)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    theirs = dict(whole.named_parameters())
    for name, mine in rows.named_parameters():
        if mine.grad is None:
            assert theirs[name].grad is None
        else:
            torch.testing.assert_close(mine.grad, theirs[name].grad, rtol=1e-5, atol=1e-6, msg=name)


def test_a_table_whose_levels_depend_on_the_whole_table_is_rounded_whole() -> None:
    rows, _ = prepared(Pact(), None, 4)
    assert look_ups(rows) == []


def test_a_step_that_reads_few_rows_still_observes_the_whole_table() -> None:
    rows, _ = prepared(MinMaxQat(), None, 8)
    set_phase(rows, observe=True, quantize=True, freeze_batch_norm=False)
    table = dict(rows.named_parameters())["tokens.weight"]
    with torch.no_grad():
        table[ROWS - 1] = 50.0
    rows.train()(torch.zeros(1, 5, dtype=torch.long))
    (fake,) = (fake for value, fake in weights_of(rows) if value().shape == table.shape)
    assert torch.equal(fake.grid().scale, torch.full((8,), 50.0 / fake.place.qmax))


def test_the_converted_model_gives_what_the_prepared_one_gives() -> None:
    rows, whole = prepared(MinMaxQat(), None, 8)
    tokens = torch.randint(0, ROWS, (3, 5))
    both = [convert(model.eval()) for model in (rows, whole)]
    assert [node.name for node in both[0].graph.nodes] == [node.name for node in both[1].graph.nodes]
    assert torch.equal(both[0](tokens), both[1](tokens))
    torch.testing.assert_close(both[0](tokens), rows(tokens), rtol=0, atol=2e-2)
