"""Faster forms of attention, tables and last steps give the same bits and the same coverage."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kdq_targets.onnx_export as onnx_export
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_targets.openvino_cpu import OpenVinoCpu
from tests.plugins.targets.test_forms import quantized

REWRITES = ("fuse_attention", "join_tables", "read_last_states")


def left_out(*names: str) -> Any:
    """Leave some of the rewrites out while a file is written."""
    patch = pytest.MonkeyPatch()
    for of in (OnnxRuntimeCpu, OpenVinoCpu):
        usual = of._rewrites

        def others(self: Any, model: Any, usual: Any = usual) -> Any:
            return [one for one in usual(self, model) if getattr(one, "__name__", "") not in names]

        patch.setattr(of, "_rewrites", others)
    if "read_last_states" in names:
        patch.setattr(onnx_export, "read_last_states", lambda graph: None)
    return patch


def compared(model: Any, inputs: Any, folder: Any, target: Any = None, left: Any = REWRITES) -> dict[str, list[Any]]:
    """Write the float and the int8 file with and without rewrites; the answers and coverages of both are equal.

    Gives the operators of the files with the rewrites, and without.
    """
    torch.manual_seed(0)
    target, model = target or OnnxRuntimeCpu(), model.eval()
    graph, integers = quantized(model, inputs(32), target)
    kinds: dict[str, list[Any]] = {}
    for name, one in (("float", model), ("int8", integers)):
        answers, rows = [], []
        exported = onnx_export._export(one, inputs(2))
        for index, skipped in enumerate(((), left)):
            path = folder / f"{name}{index}.onnx"
            patch = left_out(*skipped)
            patch.setattr(onnx_export, "_export", lambda *_, made=exported: deepcopy(made))
            try:
                target.export(one, inputs(2), path)
            finally:
                patch.undo()
            torch.manual_seed(1)
            sessions = [target.session(path, threads=threads) for threads in (1, 2)]
            batches = [tuple(part.numpy() for part in inputs(count)) for count in (1, 2, 33) for _ in range(2)]
            answers.append([made for x in batches for session in sessions for made in session.run(x)])
            rows.append(target.coverage(path, graph) if name == "int8" else ())
            kinds.setdefault(name, []).append([node.op_type for node in onnx.load(str(path)).graph.node])
        assert all(np.array_equal(made, wanted) for made, wanted in zip(*answers, strict=True)), name
        if not any("Attention" in one for one in kinds[name]):
            assert rows[0] == rows[1]
        assert [covered(row) for row in rows[0]] == [covered(row) for row in rows[1]]
    return kinds


def covered(row: Any) -> Any:
    """A row without the names of float kernels: `Attention` stands for the products that it computes."""
    told = {"kernel": "", "reason": ""} if not row.int8 else {}
    return row.model_copy(update=told)


def changed(kinds: dict[str, list[Any]], kind: str) -> dict[str, list[int]]:
    return {name: [one.count(kind) for one in both] for name, both in kinds.items()}


def encoder(length: int, width: int, heads: int, **options: Any) -> Any:
    layer = nn.TransformerEncoderLayer(width, heads, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), partial(rows_of, length, width)


def rows_of(length: int, width: int, count: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(count, length, width),)


class Separate(nn.Module):
    """Attention of heads that three linear layers make; options for what keeps it as it is."""

    def __init__(self, length: int, width: int, heads: int, queries: int = 0, **options: Any) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.options, self.queries = heads, options, queries or length

    def cut(self, x: Any) -> Any:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Any) -> Any:
        q, k, v = self.cut(self.q(x[:, : self.queries])), self.cut(self.k(x)), self.cut(self.v(x))
        y = F.scaled_dot_product_attention(q, k, v, **self.options).transpose(1, 2)
        return self.out(y.reshape(x.shape[0], self.queries, -1))


@pytest.mark.parametrize(
    ("length", "width", "heads"),
    [
        (5, 16, 2),
        *(pytest.param(*sizes, marks=pytest.mark.rare) for sizes in ((2, 8, 2), (33, 24, 3), (70, 136, 2))),
    ],
)
def test_packed_attention_is_one_operator_with_the_same_bits(
    length: int, width: int, heads: int, tmp_path: Any
) -> None:
    model, inputs = encoder(length, width, heads, norm_first=bool(length % 2))
    kinds = compared(model, inputs, tmp_path)
    assert changed(kinds, "Attention") == {"float": [2, 0], "int8": [2, 0]}
    assert [both[0].count("Transpose") for both in kinds.values()] == [0, 0]


@pytest.mark.parametrize(
    ("length", "width", "heads", "queries"),
    [(5, 16, 2, 0), pytest.param(33, 24, 3, 1, marks=pytest.mark.rare), (130, 16, 8, 7)],
)
def test_attention_of_separate_heads_is_one_operator_with_the_same_bits(
    length: int, width: int, heads: int, queries: int, tmp_path: Any
) -> None:
    kinds = compared(Separate(length, width, heads, queries), partial(rows_of, length, width), tmp_path)
    assert changed(kinds, "Attention") == {"float": [1, 0], "int8": [1, 0]}
    assert [both[0].count("Transpose") for both in kinds.values()] == [0, 0]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.register_buffer("mask", torch.triu(torch.full((5, 5), float("-inf")), 1))

    def forward(self, x: Any) -> Any:
        return self.layer(x, src_mask=self.mask)


class WithScores(nn.Module):
    """Packed attention that also gives its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.attention(x, x, x)


class Shared(nn.Module):
    """One query for all samples: its heads have the batch size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Separate(5, 16, 2)

    def forward(self, x: Any) -> Any:
        one = self.attention
        q, k, v = one.cut(one.q(x[:1, :3])), one.cut(one.k(x)), one.cut(one.v(x))
        return one.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 3, 16))


class Stem(nn.Module):
    """A convolution before the attention: the runtime knows faster ones in the opset of other files."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv1d(16, 16, 3, padding=1), Separate(5, 16, 2)

    def forward(self, x: Any) -> Any:
        return self.attention(self.conv(x.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize(
    "model",
    [Masked, WithScores, Shared, Stem, partial(Separate, 5, 16, 2, is_causal=True), partial(Separate, 5, 16, 16)],
    ids=["mask", "scores", "one query", "conv", "causal", "heads of width 1"],
)  # fmt: skip
def test_other_attention_stays_as_it_is(model: Any, tmp_path: Any) -> None:
    path, module = tmp_path / "one.onnx", model().eval()
    x = rows_of(5, 16, 2)
    OnnxRuntimeCpu().export(module, x, path)
    graph = onnx.load(str(path))
    assert "Attention" not in {node.op_type for node in graph.graph.node}
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] == 20
    answers = OnnxRuntimeCpu().session(path, threads=1).run((x[0].numpy(),))
    with torch.no_grad():
        wanted = module(*x)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert all(np.allclose(made, one.numpy(), atol=1e-5) for made, one in zip(answers, wanted, strict=True))


class Looked(nn.Module):
    """Tables and numbers beside each other."""

    def __init__(self, sizes: Any = ((50, 16), (50, 16), (50, 16)), columns: Any = (0, 1, 2)) -> None:
        super().__init__()
        self.tables, self.columns = nn.ModuleList(nn.Embedding(*size) for size in sizes), columns
        self.hidden, self.head = nn.Linear(4 + sum(width for _, width in sizes), 32), nn.Linear(32, 5)

    def forward(self, ids: Any, x: Any) -> Any:
        parts = [table(ids[:, index]) for table, index in zip(self.tables, self.columns, strict=True)]
        return self.head(F.relu(self.hidden(torch.cat([*parts, x], 1))))


def categories(count: int) -> tuple[torch.Tensor, ...]:
    return torch.randint(50, (count, 3)), torch.randn(count, 4)


def test_tables_of_one_shape_are_read_as_one_with_the_same_bits(tmp_path: Any) -> None:
    kinds = compared(Looked(), categories, tmp_path)
    assert changed(kinds, "Range") == {"float": [1, 0], "int8": [1, 0]}
    assert changed(kinds, "DequantizeLinear")["int8"][0] < changed(kinds, "DequantizeLinear")["int8"][1]


def test_columns_may_be_in_any_order_and_be_read_twice(tmp_path: Any) -> None:
    assert changed(compared(Looked(columns=(2, 0, 0)), categories, tmp_path), "Range")["int8"] == [1, 0]


def test_tables_of_other_widths_are_read_one_by_one(tmp_path: Any) -> None:
    kinds = compared(Looked(((50, 16), (50, 8), (50, 16))), categories, tmp_path)
    assert changed(kinds, "Range") == {"float": [0, 0], "int8": [0, 0]}


@pytest.mark.parametrize("bad", [50, 99, -51])
def test_an_index_that_a_table_does_not_have_fails_as_before(bad: int, tmp_path: Any) -> None:
    torch.manual_seed(0)
    path = tmp_path / "one.onnx"
    OnnxRuntimeCpu().export(Looked().eval(), categories(2), path)
    session = OnnxRuntimeCpu().session(path, threads=1)
    ids, x = (part.numpy() for part in categories(2))
    ids[0, 0] = bad
    with pytest.raises(Exception, match="indices element out of data bounds"):
        session.run((ids, x))


class Last(nn.Module):
    """A recurrent layer of which the last step is read, and more if asked."""

    def __init__(self, kind: Any, more: str = "", **options: Any) -> None:
        super().__init__()
        self.layer, self.more = kind(6, 12, batch_first=True, **options), more
        self.head = nn.Linear(24 if options.get("bidirectional") else 12, 5)

    def forward(self, x: Any) -> Any:
        every, _ = self.layer(x)
        made = self.head(every[:, 0 if self.more == "first" else -1])
        return (made, every) if self.more == "all" else made


@pytest.mark.parametrize("of", [OnnxRuntimeCpu, OpenVinoCpu])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_last_step_is_read_from_the_state_with_the_same_bits(kind: Any, of: Any, tmp_path: Any) -> None:
    kinds = compared(Last(kind), partial(rows_of, 9, 6), tmp_path, of())
    assert all(plain.count("Transpose") - with_it.count("Transpose") == 2 for with_it, plain in kinds.values())


def test_so_it_is_behind_another_layer_and_with_a_gru_by_steps(tmp_path: Any) -> None:
    kinds = compared(Last(nn.GRU, num_layers=2), partial(rows_of, 9, 6), tmp_path, OnnxRuntimeCpu(gru="steps"))
    assert all(len(with_it) < len(plain) for with_it, plain in kinds.values())


@pytest.mark.parametrize(
    ("more", "options"), [("all", {}), ("first", {}), ("", {"bidirectional": True})], ids=["all", "first", "two ways"]
)
def test_a_layer_whose_other_steps_are_read_stays_as_it_is(more: str, options: Any, tmp_path: Any) -> None:
    kinds = compared(Last(nn.LSTM, more, **options), partial(rows_of, 9, 6), tmp_path)
    assert all(with_it == plain for with_it, plain in kinds.values())
