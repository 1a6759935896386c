"""What is compared: the list of all cases."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from benchmarks.peers.nets import NETS

BITS = ("W8A8", "W4A8", "W4A4", "W2A2")
EIGHT = BITS[:1]
FLOAT = "float"
RECIPES: dict[str, dict[str, tuple[str, ...]]] = {
    "kdq": {"ptq": BITS, "qat": BITS, "ptq-openvino": EIGHT, "qat-openvino": EIGHT},
    "torchao": {"ptq": BITS, "qat": BITS},
    "nncf": {"ptq": BITS, "qat": BITS, "ptq-uncorrected": EIGHT, "ptq-onnx": EIGHT, "qat-onnxruntime": EIGHT},
    "modelopt": {"ptq": BITS, "qat": BITS, "ptq-onnx": EIGHT},
    "ort": {"ptq": BITS, "ptq-entropy": EIGHT, "ptq-percentile": EIGHT},
    "inc": {"ptq": BITS, "qat": EIGHT},
}
"""The recipes of each tool, and the bits that each is asked for. `kdq` is asked first, because others are compared with
it. KDQ's files for OpenVINO are there to be compared with NNCF's."""
STEPS = ("kdq", "torchao", "nncf", "modelopt")
"""Who trains with fake quantization."""


@dataclass(frozen=True)
class Case:
    """One file, or what it stands on.

    Attributes:
        net: a name in `NETS`.
        peer: the tool; `teacher` and `float` are plain PyTorch, which all peers stand on.
        recipe: one of `RECIPES[peer]`, or `float`, or `step`.
        bits: of weights and activations, or `float`.
        taught: whether a teacher takes part.
        seed: of weights and order.
    """

    net: str
    peer: str
    recipe: str
    bits: str
    taught: bool
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder and of its record."""
        who = "taught" if self.taught else "alone"
        return "-".join((self.net, self.peer, self.recipe, self.bits.lower(), who, str(self.seed)))

    @property
    def method(self) -> str:
        """`ptq`, `qat`, `float` or `step`."""
        return self.recipe.partition("-")[0]

    @property
    def widths(self) -> tuple[int, int]:
        """Bits of weights and activations."""
        weights, _, activations = self.bits[1:].partition("A")
        return int(weights), int(activations)

    @property
    def asked(self) -> tuple[str, ...]:
        """What a tool that refuses it once will refuse again, with another seed or teacher."""
        return self.net, self.peer, self.recipe, self.bits

    @property
    def openvino(self) -> bool:
        """Whether its file runs in OpenVINO; otherwise in ONNX Runtime."""
        return self.recipe.endswith("-openvino") or (self.peer == "nncf" and not self.recipe.startswith(NNCF_ORT))

    @property
    def home(self) -> str | None:
        """Name of the home in which KDQ makes it; `None`: another tool does."""
        return f"{self.net}-{self.seed}" if self.peer == "kdq" else None

    def stands_on(self) -> Case | None:
        """The case that trained the float student which this one quantizes, or the teacher of that one."""
        if self.method in ("ptq", "qat"):
            peer = "kdq" if self.peer == "kdq" else FLOAT
            return Case(self.net, peer, FLOAT, FLOAT, self.taught, self.seed)
        return teacher_of(self.net) if self.method == FLOAT and (self.taught or self.peer == "kdq") else None


NNCF_ORT = ("ptq-onnx", "qat-onnxruntime")


def teacher_of(net: str) -> Case:
    """The one teacher of all seeds; nets with one teacher share it."""
    first = next(name for name, other in NETS.items() if other.teacher == NETS[net].teacher)
    return Case(first, "teacher", "teacher", FLOAT, False, 0)


def cases(
    nets: Sequence[str], seeds: Sequence[int], peers: Collection[str], bits: Collection[str] = BITS
) -> list[Case]:
    """List all cases that give a file or a student, each after what it stands on."""
    owners = [FLOAT, *(["kdq"] if "kdq" in peers else [])]
    students = [
        Case(net, peer, FLOAT, FLOAT, taught, seed)
        for seed, net, taught, peer in itertools.product(seeds, nets, (False, True), owners)
    ]
    quantized = [
        Case(net, peer, recipe, width, taught, seed)
        for seed, net, peer in itertools.product(seeds, nets, [name for name in RECIPES if name in peers])
        for recipe, widths in RECIPES[peer].items()
        for width, taught in itertools.product([width for width in widths if width in bits], (False, True))
        if "nncf" in peers or (peer, recipe.endswith("-openvino")) != ("kdq", True)
    ]
    return [*dict.fromkeys(map(teacher_of, nets)), *students, *sorted(quantized, key=_mixed)]


def steps(nets: Sequence[str], peers: Collection[str]) -> list[Case]:
    """List the training steps to measure."""
    return [Case(net, peer, "step", "W8A8", False, 0) for net in nets for peer in STEPS if peer in peers]


def _mixed(case: Case) -> tuple[int, str]:
    """Seed by seed, and tools mixed: two runs of KDQ in one home would wait for each other."""
    return case.seed, hashlib.sha256(case.name.encode()).hexdigest()
