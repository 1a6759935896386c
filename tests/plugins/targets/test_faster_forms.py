"""Forms of attention and tables for which the runtime is faster give the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


class Rewritten(OnnxRuntimeCpu):
    """The target without the rewrites of attention and tables."""

    def _rewrites(self, model: Any) -> Any:
        names = ("fuse_attention", "join_tables", "scale_columns")
        return [one for one in super()._rewrites(model) if getattr(one, "__name__", "") not in names]


@pytest.mark.parametrize(("length", "width", "heads"), [(5, 16, 2), (8, 24, 3)])
def test_an_encoder_layer_becomes_one_attention_with_the_same_bits(
    length: int, width: int, heads: int, tmp_path: Any
) -> None:
    torch.manual_seed(length)
    model = nn.TransformerEncoderLayer(width, heads, 32, batch_first=True).eval()
    answers = []
    for index, target in enumerate((OnnxRuntimeCpu(), Rewritten())):
        path = tmp_path / f"{index}.onnx"
        target.export(model, (torch.randn(2, length, width),), path)
        kinds = [node.op_type for node in onnx.load(str(path)).graph.node]
        assert kinds.count("Attention") == 1 - index
        session = target.session(path, threads=1)
        data = np.random.default_rng(0)
        inputs = [data.normal(size=(count, length, width)).astype(np.float32) for count in (1, 2, 7, 32)]
        answers.append([session.run((x,))[0] for x in inputs])
    assert all(np.array_equal(one, other) for one, other in zip(*answers, strict=True))
