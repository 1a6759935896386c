"""ATen operators written so that ONNX Runtime has an int8 kernel for them.

Recurrent layers are written as ONNX's own, on dequantized weights, with PyTorch's order of gates. They carry the mark
`RECURRENT` until `onnx_recurrent` turns them into the form that the runtime runs in int8.
"""

from __future__ import annotations

from typing import Any

import torch
from onnxscript import opset18 as op

from kdq_core.api import recurrent, traced_gru, traced_lstm
from kdq_targets.onnx_pools import POOLS, pad_zeros

aten = torch.ops.aten
RECURRENT = "kdq.recurrent"
GATES = {"lstm": 4, "gru": 3}


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """Write a linear as a Gemm on rows. With a bias in int32 it is one kernel; MatMul and Add would be two."""
    rank, out = len(x.shape), weight.shape[0]
    if rank == 1:
        x = op.Unsqueeze(x, op.Constant(value_ints=[0]))
    elif rank > 2:
        rows = op.Reshape(x, op.Constant(value_ints=[-1, weight.shape[1]]))
    given = x if rank < 3 else rows
    y = op.Gemm(given, weight, transB=1) if bias is None else op.Gemm(given, weight, bias, transB=1)
    if rank == 2:
        return y
    if rank == 1:
        return op.Squeeze(y, op.Constant(value_ints=[0]))
    free = [index for index, size in enumerate(x.shape[:-1]) if not isinstance(size, int)]
    if len(free) < 2:
        sizes = [size if isinstance(size, int) else -1 for size in x.shape[:-1]]
        return op.Reshape(y, op.Constant(value_ints=[*sizes, out]))
    return op.Reshape(y, op.Concat(op.Shape(x, end=rank - 1), op.Constant(value_ints=[out]), axis=0))


def adaptive_avg_pool(x: Any, output_size: Any) -> Any:
    """Write global pooling, or windows of one size if they divide the positions evenly."""
    given, wanted = list(x.shape[2:]), list(output_size)
    if set(wanted) == {1}:
        return op.GlobalAveragePool(x)
    if not all(isinstance(g, int) and g % w == 0 for g, w in zip(given, wanted, strict=True)):
        raise ValueError(f"adaptive average pooling of {given!r} to {wanted!r} has no ONNX twin; use sizes that divide")
    window = [g // w for g, w in zip(given, wanted, strict=True)]
    return op.AveragePool(x, kernel_shape=window, strides=window)


def pad(x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    """Write padding."""
    rank = len(x.shape)
    before, after = [0] * rank, [0] * rank
    for index in range(len(pad) // 2):
        before[rank - 1 - index], after[rank - 1 - index] = pad[2 * index], pad[2 * index + 1]
    if mode == "constant" and not value:
        return pad_zeros(x, before, after)
    sizes = op.Constant(value_ints=before + after)
    if mode == "constant":
        return op.Pad(x, sizes, op.Constant(value_float=float(value)))
    return op.Pad(x, sizes, mode={"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode])


def lstm(
    x: Any, states: Any, weights: Any, biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool,
    batch_first: bool,
) -> Any:  # fmt: skip
    """Write a float LSTM."""
    del dropout, train
    return _float("lstm", x, list(states), list(weights), biases, layers, 1 + bidirectional, batch_first)


def gru(
    x: Any, state: Any, weights: Any, biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool,
    batch_first: bool,
) -> Any:  # fmt: skip
    """Write a float GRU."""
    del dropout, train
    return _float("gru", x, [state], list(weights), biases, layers, 1 + bidirectional, batch_first)


def rnn_tanh(x: Any, state: Any, weights: Any, *flags: Any) -> Any:
    """Write a float RNN with tanh."""
    return _rnn("Tanh", x, state, weights, *flags)


def rnn_relu(x: Any, state: Any, weights: Any, *flags: Any) -> Any:
    """Write a float RNN with relu."""
    return _rnn("Relu", x, state, weights, *flags)


def _rnn(
    kind: str, x: Any, state: Any, weights: Any, biases: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> Any:  # fmt: skip
    del dropout, train
    return _float(kind, x, [state], list(weights), biases, layers, 1 + bidirectional, batch_first)


def _float(
    kind: str, x: Any, states: list[Any], weights: list[Any], biases: bool, layers: int, ways: int, batch_first: bool
) -> Any:
    size = len(weights) // (layers * ways)
    projected = size % 2 == 1
    if projected and not _is_zero(states[0]):
        raise ValueError("an LSTM with 'proj_size' is written only without a first state; leave one of the two out")
    y = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    ends: list[list[Any]] = [[] for _ in states]
    for layer in range(layers):
        parts = weights[layer * ways * size : (layer + 1) * ways * size]
        w, r = (_stack(parts[index::size]) for index in (0, 1))
        b = op.Concat(_stack(parts[2::size]), _stack(parts[3::size]), axis=1) if biases else None
        first = [_slice(state, layer * ways, (layer + 1) * ways) if layers > 1 else state for state in states]
        if projected:
            y, *last = _projected(y, w, r, b, first[1], ways, _stack(parts[size - 1 :: size]), *weights[size - 1].shape)
        else:
            y, *last = _layer(kind, y, w, r, b, first, ways, weights[1].shape[1])
        for ended, state in zip(ends, last, strict=True):
            ended.append(state)
    y = op.Transpose(y, perm=[1, 0, 2]) if batch_first else y
    return (y, *(op.Concat(*ended, axis=0) if len(ended) > 1 else ended[0] for ended in ends))


def _is_zero(value: Any) -> bool:
    """Whether a value is an expanded constant 0."""
    maker = value.producer()
    number = maker.inputs[0].producer() if maker is not None and maker.op_type == "Expand" else None
    return number is not None and number.op_type == "Constant" and not number.attributes["value"].value.numpy().any()


def _projected(
    x: Any, w: Any, r: Any, b: Any, cell: Any, ways: int, p: Any, width: int, hidden: int
) -> tuple[Any, ...]:
    """Write a layer whose output h is P h' with the state h' `[D, B, H]` of a plain layer: R h is (R P) h'.

    `p` is `[D, width, hidden]`, `r` is `[D, 4 * hidden, width]`; the first h' is 0.
    """
    made = op.LSTM(x, w, op.MatMul(r, p), b, None, None, cell, hidden_size=hidden, direction=_direction(ways))
    made[0].producer().metadata_props[RECURRENT] = "float"
    turned = op.Transpose(p, perm=[0, 2, 1])
    joined = op.Transpose(op.MatMul(made[0], turned), perm=[0, 2, 1, 3])
    y = op.Reshape(joined, op.Constant(value_ints=[0, 0, ways * width]))
    return y, op.MatMul(made[1], turned), made[2]


def _direction(ways: int) -> str:
    return "bidirectional" if ways == 2 else "forward"


def _stack(values: list[Any]) -> Any:
    wide = [op.Unsqueeze(value, op.Constant(value_ints=[0])) for value in values]
    return op.Concat(*wide, axis=0) if len(wide) > 1 else wide[0]


def _slice(value: Any, start: int, end: int) -> Any:
    return op.Slice(value, op.Constant(value_ints=[start]), op.Constant(value_ints=[end]), op.Constant(value_ints=[0]))


def _layer(
    kind: str, x: Any, w: Any, r: Any, b: Any, states: list[Any], ways: int, hidden: int, label: str = "float"
) -> tuple[Any, ...]:
    """Write one layer; return its outputs `[T, B, D * H]` and the last states."""
    direction = _direction(ways)
    if kind == "lstm":
        made = op.LSTM(x, w, r, b, None, *states, hidden_size=hidden, direction=direction)
    elif kind == "gru":
        made = op.GRU(x, w, r, b, None, *states, hidden_size=hidden, direction=direction, linear_before_reset=1)
    else:
        made = op.RNN(x, w, r, b, None, *states, activations=[kind] * ways, hidden_size=hidden, direction=direction)
    if kind in GATES:
        made[0].producer().metadata_props[RECURRENT] = label
    joined = op.Transpose(made[0], perm=[0, 2, 1, 3])
    y = op.Reshape(joined, op.Constant(value_ints=[0, 0, ways * hidden]))
    return (y, *made[1 : 1 + len(states)])


def int8_layer(
    x: Any, scale: Any, zero: Any, states: Any, w: Any, w_scale: Any, r: Any, r_scale: Any, b_x: Any, b_h: Any,
    kind: str, label: str,
) -> Any:  # fmt: skip
    """Write an integer layer of a converted model."""
    producer = x.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        x = op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero)
    b = op.Concat(b_x, b_h, axis=1)
    hidden = r.shape[2]
    return _layer(kind, x, _wide(w, w_scale), _wide(r, r_scale), b, list(states), w.shape[0], hidden, label)


def _wide(q: Any, scale: Any) -> Any:
    """Dequantize `[D, C, I]` with scales `[D, C]`."""
    ways, channels, width = q.shape
    rows = op.Reshape(q, op.Constant(value_ints=[ways * channels, width]))
    wide = op.DequantizeLinear(rows, op.Reshape(scale, op.Constant(value_ints=[ways * channels])), axis=0)
    return op.Reshape(wide, op.Constant(value_ints=[ways, channels, width]))


TRANSLATIONS: dict[Any, Any] = {
    **POOLS,
    aten.linear.default: linear,
    aten.adaptive_avg_pool1d.default: adaptive_avg_pool,
    aten.adaptive_avg_pool2d.default: adaptive_avg_pool,
    aten.adaptive_avg_pool3d.default: adaptive_avg_pool,
    aten.pad.default: pad,
    traced_lstm._opoverload: lstm,
    traced_gru._opoverload: gru,
    aten.rnn_tanh.input: rnn_tanh,
    aten.rnn_relu.input: rnn_relu,
    recurrent._opoverload: int8_layer,
}
