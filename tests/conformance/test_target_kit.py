"""KDQ's targets pass the kit of targets, and the kit sees each broken promise."""

import dataclasses

import pytest
import torch

from kdq_core.api import Field
from kdq_core.testing import check_target
from kdq_targets.onnxruntime_cpu import OnnxRuntimeCpu
from kdq_targets.openvino_cpu import OpenVinoCpu


@pytest.mark.parametrize("target", [OnnxRuntimeCpu(reduce_range="on"), OpenVinoCpu()], ids=["onnxruntime", "openvino"])
def test_the_targets_keep_their_promises(target):
    heard = []
    check_target(target, tell=heard.append)
    assert heard[:3] == [
        "options have descriptions, and `resolved` gives plain values",
        "places of the conv net are sound",
        "the float file of the conv net gives what the model gives",
    ]


class Broken(OnnxRuntimeCpu):
    pass


class Undescribed(Broken):
    level: int = 3


class OddValues(Broken):
    def resolved(self):
        return {"reduce_range": True, "isa": ["avx2"]}


class Nowhere(Broken):
    def places(self, graph, *, keep_float=()):
        return ()


class Twice(Broken):
    def places(self, graph, *, keep_float=()):
        return super().places(graph, keep_float=keep_float) * 2


class Lost(Broken):
    def places(self, graph, *, keep_float=()):
        first, *others = super().places(graph, keep_float=keep_float)
        return (dataclasses.replace(first, node="nowhere"), *others)


class OtherModel(Broken):
    def export(self, model, example, path):
        super().export(torch.nn.Sequential(model, torch.nn.Softmax(1)), example, path)


class FixedBatch(Broken):
    def signature(self, path):
        return tuple(tuple(spec.model_copy(update={"shape": (2,)}) for spec in one) for one in super().signature(path))


class Refuses(Broken):
    level: int = Field(default=3, description="a level")

    def coverage(self, path, graph, *, keep_float=()):
        rows = super().coverage(path, graph, keep_float=keep_float)
        return tuple(row.model_copy(update={"int8": False, "reason": "none"}) for row in rows)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (Undescribed, "every option of Undescribed should have a description, but ['level'] have none"),
        (OddValues,
         "resolved() should give a dict of texts, whole numbers and bools, but it gives {'reduce_range': True, 'isa': "
         "['avx2']}"),
        (Nowhere, "the target should give places to weights, but gives none"),
        (Twice, "each place should have a name of its own, but "),
        (Lost, "each place should be a node of the graph, but "),
        (OtherModel, "the file of a float model should give its outputs, but a batch of 1 differs by "),
        (FixedBatch, "signature() should give -1 for the batch size, but 'input' has another number"),
        (Refuses, "every conv and linear should run in an int8 kernel, but these do not: stem (none)"),
    ],
)  # fmt: skip
def test_the_target_kit_names_the_broken_promise(broken, sentence):
    with pytest.raises(AssertionError) as caught:
        check_target(broken())
    assert str(caught.value).startswith(sentence)
