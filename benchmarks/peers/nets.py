"""The nets, their data and their budgets: the same for KDQ and all peers. Functions alone import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

QAT_RATE = 0.1
"""Learning rate of QAT over that of the float student, as the peers' documents advise."""


@dataclass(frozen=True)
class Net:
    """A student, its teacher, and how both are trained.

    Attributes:
        title: heading of its table.
        workload: KDQ's workload, which gives the data.
        options: options of the workload.
        teacher: the teacher's file; nets with one teacher share it.
        epochs: epochs of the float student, of QAT, and of the teacher.
        batch: samples of a step.
        sgd: SGD with Nesterov momentum 0.9; otherwise AdamW.
        rate: learning rate in float.
        decay: weight decay.
        alpha: weight of the teacher.
        temperature: softens both answers.
        ends: modules of the first and the last layer, which keep 8 bits.
        ratings: the net gives a number, and RMSE is its quality; otherwise it gives classes.
    """

    title: str
    workload: str
    options: Mapping[str, Any]
    teacher: str
    epochs: tuple[int, int, int] = (15, 3, 10)
    batch: int = 128
    sgd: bool = True
    rate: float = 0.1
    decay: float = 5e-4
    alpha: float = 0.9
    temperature: float = 4.0
    ends: tuple[str, ...] = ("stem", "head")
    ratings: bool = False


IMAGES = {"train_images": 12_000, "teacher_width": 32}
NETS = {
    "resnet8": Net("ResNet-8, Fashion-MNIST", "fashion-mnist", IMAGES, "resnet14"),
    "depthwise": Net(
        "Depthwise net, Fashion-MNIST", "fashion-mnist", {**IMAGES, "student_net": "depthwise"}, "resnet14"
    ),
    "transformer": Net(
        "Transformer, CLINC150", "clinc150", {"teacher_dropout": 0.2}, "transformer", batch=64, sgd=False, rate=3e-3,
        decay=5e-3, temperature=2.0, ends=("head",),
    ),
    "ratings": Net(
        "Bags of embeddings, goodbooks", "goodbooks", {}, "towers", epochs=(4, 1, 3), batch=1024, sgd=False, rate=5e-3,
        decay=0.1, alpha=0.5, ends=(), ratings=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """What a run may use.

    Attributes:
        tiny: one epoch over `samples` samples: shows whether all tools run; the figures mean nothing.
    """

    tiny: bool = False
    samples: int = field(default=512, init=False)

    def epochs(self, net: Net) -> tuple[int, int, int]:
        """Epochs of the float student, of QAT, and of the teacher."""
        return (1, 1, 1) if self.tiny else net.epochs

    def options(self, net: Net) -> dict[str, Any]:
        """Options of the workload."""
        fewer = {"train_images": self.samples} if self.tiny and "train_images" in net.options else {}
        return {**net.options, **fewer}


def student(name: str, sizes: Mapping[str, int]) -> nn.Module:
    """Make the student that KDQ's workload makes, without KDQ; `sizes` are those of the data."""
    if name == "transformer":
        from kdq_examples.text_nets import TextTransformer

        return TextTransformer(sizes["words"], sizes["classes"], 64, 1, sizes["length"], 0.1)
    if name == "ratings":
        from kdq_examples.towers import Towers

        return Towers(sizes["users"], sizes["books"], 16, 0.3)
    from kdq_examples.nets import DepthwiseNet, resnet

    return DepthwiseNet(24) if name == "depthwise" else resnet(16, blocks=1)


def teacher(name: str, sizes: Mapping[str, int]) -> nn.Module:
    """Make the teacher of a net."""
    if name == "transformer":
        from kdq_examples.text_nets import TextTransformer

        return TextTransformer(sizes["words"], sizes["classes"], 128, 2, sizes["length"], 0.2)
    if name == "ratings":
        from kdq_examples.towers import Towers

        return Towers(sizes["users"], sizes["books"], 64, 0.5)
    from kdq_examples.nets import resnet

    return resnet(32, blocks=2)
