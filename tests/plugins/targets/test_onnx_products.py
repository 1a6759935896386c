"""Products between activations have multiply-accumulates of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdq_core.quantization.capture import capture
from kdq_targets.onnx_places import Finder
from kdq_targets.onnx_products import activation_macs

LENGTH, WIDTH, HEADS = 5, 16, 4


class Products(nn.Module):
    """One product, chosen by name, of two tensors `[B, L, W]` that depend on the input."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        square: Tensor = {
            "attention": lambda: self.attention(x, x, x, need_weights=False)[0],
            "matmul": lambda: x @ y.transpose(1, 2),
            "bmm": lambda: torch.bmm(x, y.transpose(1, 2)),
            "baddbmm": lambda: torch.baddbmm(x[:, :, :LENGTH], x, y.transpose(1, 2)),
            "einsum": lambda: torch.einsum("bld,bsd->bls", x, y),
            "einsum without a result": lambda: torch.einsum("bld,dq", x, y[0].transpose(0, 1)),
            "einsum with an ellipsis": lambda: torch.einsum("...d,...d->...", x, y),
            "weight": lambda: x @ self.weight,
            "einsum with a weight": lambda: torch.einsum("bld,dw->blw", x, self.weight),
            "mul": lambda: x * y,
        }[self.name]()
        return square


def counted(name: str) -> int:
    finder = Finder(capture(Products(name), (torch.randn(2, LENGTH, WIDTH),)), (), True)
    return sum(activation_macs(node, kind) for node, kind, _ in finder.operators())


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("attention", 2 * HEADS * LENGTH * LENGTH * (WIDTH // HEADS)),
        ("matmul", LENGTH * LENGTH * WIDTH),
        ("bmm", LENGTH * LENGTH * WIDTH),
        ("baddbmm", LENGTH * LENGTH * WIDTH),
        ("einsum", LENGTH * LENGTH * WIDTH),
        ("einsum without a result", LENGTH * LENGTH * WIDTH),
        ("einsum with an ellipsis", LENGTH * WIDTH),
        ("weight", 0),
        ("einsum with a weight", 0),
        ("mul", 0),
    ],
)
def test_the_products_between_activations_of_one_sample_are_counted(name: str, macs: int) -> None:
    assert counted(name) == macs
