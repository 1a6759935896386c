"""Products between activations have multiply-accumulates of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdq_core.quantization.capture import capture
from kdq_targets.onnx_places import Finder
from kdq_targets.onnx_products import activation_macs, float_bytes

LENGTH, WIDTH, HEADS = 5, 16, 4


class Products(nn.Module):
    """One product, chosen by name, of two tensors `[B, L, W]` that depend on the input."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.heads = nn.Parameter(torch.randn(HEADS, WIDTH // HEADS, 3))

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
            "einsum by head": lambda: torch.einsum("blhd,hdw->blhw", x.view(-1, LENGTH, HEADS, 4), self.heads),
            "a constant in front": lambda: self.weight @ x.transpose(1, 2),
            "mul": lambda: x * y,
        }[self.name]()
        return square


def found(name: str) -> Finder:
    return Finder(capture(Products(name), (torch.randn(2, LENGTH, WIDTH),)), (), True)


def counted(name: str) -> int:
    finder = found(name)
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


@pytest.mark.parametrize(
    ("name", "macs", "weights"),
    [
        ("einsum with a weight", LENGTH * WIDTH * WIDTH, WIDTH * WIDTH),
        ("einsum by head", LENGTH * WIDTH * 3, WIDTH * 3),
        ("a constant in front", WIDTH * WIDTH * LENGTH, WIDTH * WIDTH),
        ("matmul", 0, 0),
    ],
)
def test_the_work_and_the_bytes_of_a_product_with_a_weight_are_counted(name: str, macs: int, weights: int) -> None:
    finder = found(name)
    (product,) = [node for node, kind, _ in finder.operators() if kind == "matmul"]
    assert finder.macs(product, "matmul") == macs
    assert float_bytes(product, "matmul") == 4 * weights
