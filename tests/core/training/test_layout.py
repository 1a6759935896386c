"""Which models compute channels last, and which may not."""

import pytest
import torch
from torch import Tensor, nn

from kdq_core.quantization.capture import capture
from kdq_core.quantization.placing import placed
from kdq_core.quantization.prepare import prepare
from kdq_core.recipe.spec import QuantizeSpec
from kdq_core.training.layout import channels_last, overflows
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu

NHWC_OF_ONE_CHANNEL = torch.zeros(2, 1, 8, 8).as_strided((2, 1, 8, 8), (64, 1, 8, 1))


class Shortcut(nn.Module):
    """A convolution, then a pointwise one with a stride. Input `[B, 1, 8, 8]`."""

    def __init__(self, channels: int, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, 8, 1, stride=stride)
        self.strides: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.strides = x.stride()
        y: Tensor = self.shortcut(x)
        return y


@pytest.mark.parametrize(
    ("channels", "stride", "strides"),
    [(16, 2, (1024, 1, 128, 16)), (4, 1, (256, 1, 32, 4)), (4, 2, (256, 64, 8, 1)), (15, 2, (960, 64, 8, 1))],
)
def test_few_channels_into_a_pointwise_convolution_with_a_stride_stay_channels_first(
    channels: int, stride: int, strides: tuple[int, ...]
) -> None:
    m = Shortcut(channels, stride)
    handle = channels_last(m, (NHWC_OF_ONE_CHANNEL,))
    for _ in range(20):  # memory written beyond its end ends the process sooner or later
        m(NHWC_OF_ONE_CHANNEL).sum().backward()
    assert m.strides == strides
    assert handle is not None
    handle.remove()


def test_grey_images_are_computed_channels_last_too() -> None:
    model, images = Shortcut(16), torch.zeros(2, 1, 8, 8)
    assert channels_last(model, (images,)) is not None
    assert model.conv.weight.stride() == (9, 1, 3, 1)
    model(images)
    assert model.strides == (1024, 1, 128, 16)


@pytest.mark.parametrize(("channels", "wrong"), [(16, False), (4, True)])
def test_a_captured_graph_is_seen_through_with_and_without_fake_quantizers(channels: int, wrong: bool) -> None:
    graph = capture(Shortcut(channels), (NHWC_OF_ONE_CHANNEL,))
    places = placed(graph, OnnxRuntimeCpu(), MinMaxQat(), QuantizeSpec()).places
    assert overflows(graph) is wrong
    assert overflows(prepare(graph, places, MinMaxQat())) is wrong


@pytest.mark.parametrize(("channels", "wrong"), [(16, False), (8, True)])
def test_a_captured_convolution_whose_padding_is_a_word_is_seen(channels: int, wrong: bool) -> None:
    model = nn.Sequential(nn.Conv2d(channels, 16, 1, stride=2, padding="valid"))
    graph = capture(model, (torch.zeros(2, channels, 8, 8),))
    assert torch.ops.aten.conv2d.padding in {node.target for node in graph.graph.nodes}
    assert overflows(graph) is wrong
