"""The house quantizers pass the kit on every form of the house target, and the kit sees each broken promise."""

import pytest
import torch

from kdq_core.api import FakeQuantize, Field, Grid, MinMaxFakeQuantize, Quantizer
from kdq_core.testing import TOYS, check_quantizer
from kdq_quantizers.minmax_qat import MinMaxQat
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu


@pytest.mark.parametrize("options", [{}, {"averaging": 1.0}])
def test_minmax_qat_keeps_the_promises_of_a_quantizer(options):
    check_quantizer(MinMaxQat(**options), target=OnnxRuntimeCpu(reduce_range="on"))


@pytest.mark.parametrize("toy", TOYS[1:], ids=lambda toy: toy.name)
def test_the_promises_hold_for_every_family_of_operators(toy):
    check_quantizer(MinMaxQat(), target=OnnxRuntimeCpu(reduce_range="on"), toys=(toy,))


class Broken(Quantizer):
    how: str = Field(default="", description="name of its fake-quantizer")

    def fake_quantizer(self, place):
        return globals()[self.how](place)


class NoGradient(MinMaxFakeQuantize):
    def forward(self, x):
        return super().forward(x).detach() + 0 * x


UNSEEDED = torch.Generator().manual_seed(0)  # runs on from model to model


class RandomRounding(MinMaxFakeQuantize):
    def forward(self, x):
        return super().forward(x) * (1 + 0.01 * torch.rand((), generator=UNSEEDED))


class RandomTraining(MinMaxFakeQuantize):
    def forward(self, x):
        return super().forward(x) * (1 + 0.01 * self.training * torch.rand((), generator=UNSEEDED))


class Rounds(MinMaxFakeQuantize):
    """Rounds as plain PyTorch does, which gives no gradient."""

    def forward(self, x):
        if self.observing:
            self.observe(x.detach())
        grid = self.grid()
        return x.div(grid.spread(x)).round().mul(grid.spread(x))


class FloatZeroPoint(MinMaxFakeQuantize):
    def grid(self):
        grid = super().grid()
        return Grid(grid.scale, grid.zero_point.float(), grid.qmin, grid.qmax, grid.axis)


class ForgetsItsRange(MinMaxFakeQuantize):
    def __init__(self, place):
        super().__init__(place)
        low, high = self.low, self.high
        del self.low, self.high
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)


class ObservesWhileScoring(MinMaxFakeQuantize):
    def forward(self, x):
        self.observe(x)
        return super().forward(x)


class OtherGrid(MinMaxFakeQuantize):
    def grid(self):
        grid = super().grid()
        return Grid(grid.scale * 2, grid.zero_point, grid.qmin, grid.qmax, grid.axis)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("NoGradient",
         "no straight-through gradient: `round` has none; the fake-quantizer of 'stem.weight' gives its input no "
         "gradient: return x + (rounded - x).detach() inside the range; every parameter should get a gradient, but "
         "these got zero in 8 steps: depthwise.weight"),
        ("Rounds",
         "no straight-through gradient: `round` has none; the fake-quantizer of 'stem.weight' gives its input no "
         "gradient: return x + (rounded - x).detach() inside the range; every parameter should get a gradient, but "
         "these got zero in 8 steps: depthwise.weight"),
        ("FloatZeroPoint",
         "the zero point of 'stem.weight' should be a tensor of integers, but it is torch.float32; give Grid(scale, "
         "zero.round().to(torch.int32), ...)"),
        ("RandomRounding",
         "random in eval mode: the fake-quantizer of 'stem.weight' gives other outputs for the same samples at each "
         "call; draw random numbers only while `training` is set"),
        ("RandomTraining", "the same seed should give the same model, but these differ: depthwise.weight"),
        ("ForgetsItsRange", "a reloaded model should give the same outputs, but it does not"),
        ("ObservesWhileScoring", "scoring should change nothing, but it changed fake_quantizers."),
        ("OtherGrid", "the converted model should be within 1.0 LSB of the prepared one, but p99 is"),
    ],
)  # fmt: skip
def test_the_quantizer_kit_names_the_broken_promise(how, sentence):
    assert issubclass(globals()[how], FakeQuantize)
    with pytest.raises(AssertionError) as caught:
        check_quantizer(Broken(how=how), target=OnnxRuntimeCpu(reduce_range="on"))
    assert str(caught.value).startswith(sentence)


class Undescribed(MinMaxQat):
    strength: float = Field(default=1.0, ge=0, le=2)


def test_an_option_without_a_description_is_named():
    with pytest.raises(AssertionError) as caught:
        check_quantizer(Undescribed(), target=OnnxRuntimeCpu(reduce_range="on"))
    assert str(caught.value) == "every option of Undescribed should have a description, but ['strength'] have none"


def test_the_kit_says_what_it_tried():
    heard = []
    check_quantizer(MinMaxQat(), target=OnnxRuntimeCpu(reduce_range="on"), tell=heard.append)
    assert heard == [
        "each option has a description",
        "the conv net trains with its fake-quantizers",
        "zero points are integers",
        "scoring changes nothing",
        "eval mode gives the same outputs at each call",
        "the same seed gives the same model, and its file too",
        "rounding twice is rounding once",
        "the integers give what the training saw",
        "the file gives what the integers give",
        "the runtime computes layers in int8, or says why not",
    ]
